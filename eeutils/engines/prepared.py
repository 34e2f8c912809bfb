"""A network made ready for an engine."""

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from eeutils.device import choose_device
from eeutils.engines.registry import PRECISIONS, Settings, Stages, find_engine
from eeutils.models import MultiExitNet, drop_exits, prepared_for_inference
from eeutils.models.contracts import check_exits, checked_answers
from eeutils.models.memory import check_weights, device_and_dtype
from eeutils.models.multiexit import Features, tensors_of

_CALIBRATION_IMAGES = 300
_SEVERAL = 3  # images that a network is tried out with
_OPENMP = ThreadpoolController().select(user_api="openmp")  # torch's threads


class _Split(Protocol):
    """Images that int8 is calibrated on (`eeutils.data.Split`)."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> "_Split": ...

    def batches(self, batch_size: int, device: str) -> Iterable[tuple[Tensor, Tensor]]: ...


class PreparedNet:
    """A copy of a network, ready to answer on an engine.

    `Cascade`, `predict` and `measure_seconds` take it in place of the network, and share what was converted or
    quantized:

        ready = PreparedNet(net, "openvino", precision="int8", calibration=data.val)
        choice = choose_thresholds(predict(ready, data.val, costs=measure_seconds(ready, data.val)), 0.5)
        cascade = Cascade(ready, choice.policy)

    Stages are converted when images of a new shape arrive, for that shape and any number of images.

    Args:
        net: the network; it is not changed.
        engine: "torch"; "compile" (`torch.compile`); "openvino" or "onnxruntime", whose packages are extras of eeutils;
            or one of `register_engine`.
        precision: "fp32"; "bf16", faster where the hardware knows it; "int8", quantized after training. By default that
            of the weights, and "fp32" on OpenVINO and ONNX Runtime.
        device: where to compute; by default where the network is.
        threads: of OpenVINO and ONNX Runtime; by default as many as torch has.
        calibration: validation images for "int8", a split; 300 of them are used.

    Raises:
        ValueError: if engine, precision and device do not go together, or a weight is missing, NaN or infinite.
        ModuleNotFoundError: if the engine is not installed.
    """

    def __init__(
        self,
        net: MultiExitNet,
        engine: str = "torch",
        *,
        precision: str | None = None,
        device: torch.device | str | None = None,
        threads: int | None = None,
        calibration: _Split | None = None,
    ) -> None:
        net = check_exits(net)
        home, _ = device_and_dtype(net)
        check_weights(net)
        self.engine = engine
        self._engine = find_engine(engine)
        _check_precision(precision, engine, self._engine.precisions)
        if device is None:
            device = home if home.type in self._engine.devices else "cpu"
        device = choose_device(device)
        if device.type not in self._engine.devices:
            raise ValueError(f"device must be one of {self._engine.devices} for engine {engine!r}, got {str(device)!r}")
        images = _calibration_images(calibration) if precision == "int8" else None
        self._settings = Settings(precision, device, threads or torch.get_num_threads(), images)
        self.net = prepared_for_inference(net).to(device)
        self._stages: dict[tuple[int, ...], Stages] = {}  # by the shape of an image
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_exits} exits on {self.engine}, {self.precision or 'as trained'})"

    @property
    def num_exits(self) -> int:
        return self.net.num_exits

    @property
    def device(self) -> torch.device:
        return self._settings.device

    @property
    def precision(self) -> str | None:
        return self._settings.precision

    def stages_for(self, images: Tensor) -> Stages:
        """The stages for `images` (N, C, H, W) of this shape; safe for threads."""
        shape = images.shape[1:]
        if shape not in self._stages:
            with self._lock:
                if shape not in self._stages:
                    self._stages[shape] = self._prepare(images)
        return self._stages[shape]

    def undisturbed(self, images: object) -> AbstractContextManager[object]:
        """Keep torch's other threads asleep while an engine with threads of its own is asked about several images.

        Torch wakes them for the softmax of a few rows, and they go on spinning on the cores that the engine computes
        on: OpenVINO lost a tenth of its speed on batches in float32 and a fifth in int8.
        """
        several = isinstance(images, Tensor) and images.ndim > 0 and len(images) > 1
        return _OPENMP.limit(limits=1) if several and self._engine.own_threads else nullcontext()

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (E, N, C) float32 of every exit."""
        stages, answers = self.stages_for(images), []
        with torch.inference_mode():
            x = stages.read(images)
            for run in stages.run:
                x, answer = run(x)
                answers.append(answer)
            stacked = torch.stack(answers)
        return stacked.clone()

    def keeping(self, exits: Iterable[int]) -> "PreparedNet":
        """The same network on the same engine with the exits at these positions only; weights are shared."""
        kept = object.__new__(PreparedNet)
        dropped = set(range(self.num_exits)) - set(exits)
        vars(kept).update(vars(self))
        kept.net = drop_exits(self.net, [self.net.exit_after[index] for index in dropped])
        kept._stages, kept._lock = {}, threading.Lock()
        return kept

    def _prepare(self, images: Tensor) -> Stages:
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode count no writes
            several = images[:1].detach().to(*device_and_dtype(self.net)).repeat(_SEVERAL, 1, 1, 1)
            checked_answers(self.net, several.clone())
            _check_features(self.net.forward_features(several))
            if self._stages and not self._engine.per_shape:
                return next(iter(self._stages.values()))
            return self._engine.prepare(self.net, images[:1].detach(), self._settings)


def _check_features(features: Sequence[Features]) -> None:
    shapes = [tuple(tensor.shape) for each in features[:-1] for tensor in tensors_of(each)]
    if any(shape[:1] != (_SEVERAL,) for shape in shapes):
        raise ValueError(f"units must hand on tensors with the {_SEVERAL} images first, got shapes {shapes}")


def _check_precision(precision: str | None, engine: str, known: tuple[str, ...]) -> None:
    if precision is not None and precision not in known:
        what = f"one of {known} for engine {engine!r}" if precision in PRECISIONS else f"one of {PRECISIONS}"
        raise ValueError(f"precision must be {what}, got {precision!r}")


def _calibration_images(split: _Split | None) -> Tensor:
    if split is None or len(split) == 0:
        given = "None" if split is None else "no images"
        raise ValueError(f"calibration must be a split of validation images for precision 'int8', got {given}")
    index = torch.linspace(0, len(split) - 1, min(_CALIBRATION_IMAGES, len(split))).long()  # a split may be sorted
    return next(iter(split.take(index).batches(len(index), "cpu")))[0].contiguous()
