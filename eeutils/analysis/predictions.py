"""The one table that every analysis reads: the logits of every exit for every image of a split."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from eeutils.analysis.costs import exit_costs, remove_hooks
from eeutils.data.augmentation import check_normalized
from eeutils.data.splits import Split
from eeutils.device import choose_device
from eeutils.engines import PreparedNet
from eeutils.files import load_tensors, reading, save_tensors
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_answers, check_exits, checked_answers
from eeutils.models.memory import channels_last, device_and_dtype

_ONE_AT_A_TIME = RLock()


@dataclass(frozen=True)
class Predictions:
    """Logits of N images in C classes at all E exits of a network, on the CPU.

    Attributes:
        logits: (E, N, C) float32, shallowest exit first, finite, of two classes or more.
        labels: (N,) int64.
        costs: (E,) float64, cost of one image up to and including each exit, with all heads on the way: multiply-adds,
            or another measure that was given to `predict`.

    Raises:
        ValueError: if types, shapes or values are others than these.
    """

    logits: Tensor
    labels: Tensor
    costs: Tensor

    def __post_init__(self) -> None:
        shape = getattr(self.logits, "shape", ())
        floats = torch.float32, torch.float64  # in 16 bits all confidences near 1 would be equal
        if len(shape) != 3 or 0 in shape or shape[2] < 2 or self.logits.dtype not in floats:
            raise ValueError(
                f"logits must be an (E, N, C) float32 tensor of 2 classes or more, got {_described(self.logits)}"
            )
        num_exits, num_images, num_classes = shape
        labels_fit = _is_tensor(self.labels, (num_images,), torch.int64)
        if not labels_fit or ((self.labels < 0) | (self.labels >= num_classes)).any():
            raise ValueError(
                f"labels must be a ({num_images},) int64 tensor in 0..{num_classes - 1}, got {_described(self.labels)}"
            )
        _check_costs(self.costs, num_exits)
        finite = self.logits.isfinite().flatten(1).all(1)
        if not finite.all():
            raise ValueError(
                f"logits must be finite, got NaN or infinity at exits {(~finite).nonzero().flatten().tolist()}"
            )

    def __repr__(self) -> str:
        exits, images, classes = self.logits.shape
        accuracy = " / ".join(f"{share:.2%}" for share in self.accuracy.tolist())
        return f"{type(self).__name__}({images:,} images, {exits} exits, {classes} classes; accuracy {accuracy})"

    @property
    def num_exits(self) -> int:
        return self.logits.shape[0]

    @property
    def relative_costs(self) -> Tensor:
        """(E,) `costs` as shares of the whole network's."""
        return self.costs / self.costs[-1]

    @cached_property
    def probs(self) -> Tensor:
        """(E, N, C) softmax of the logits."""
        return self.logits.softmax(-1)

    @cached_property
    def predicted(self) -> Tensor:
        """(E, N) int64, the class with the largest logit."""
        return self.logits.argmax(-1)

    @cached_property
    def confidence(self) -> Tensor:
        """(E, N), the probability of the predicted class."""
        return self.probs.amax(-1)

    @cached_property
    def correct(self) -> Tensor:
        """(E, N) bool."""
        return self.predicted == self.labels

    @cached_property
    def accuracy(self) -> Tensor:
        """(E,) float64, share of the images that each exit classifies correctly."""
        return self.correct.double().mean(1)

    def top_k(self, k: int) -> Tensor:
        """(E,) float64, share of the images whose class is among the `k` largest logits of each exit."""
        return (self.logits.topk(k).indices == self.labels[:, None]).any(-1).double().mean(1)

    def take(self, index: Tensor) -> "Predictions":
        """Return the predictions for the images that `index` (positions or a boolean mask) selects."""
        return Predictions(self.logits[:, index], self.labels[index], self.costs)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; logits as float16, half the size, rounded by 0.05 %.

        Raises:
            ValueError: if a logit is too large for float16.
            StorageError: if the file cannot be written.
        """
        largest, limit = float(self.logits.abs().max()), torch.finfo(torch.float16).max
        if largest > limit:
            raise ValueError(f"logits must be at most {limit:g} to be saved as float16, got {largest:.4g}")
        save_tensors(path, {"logits": self.logits.half(), "labels": self.labels.int(), "costs": self.costs})

    @staticmethod
    def load(path: Path | str) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if it is damaged, or holds something else.
        """
        tensors, _ = load_tensors(path)
        with reading(path):
            return Predictions(tensors["logits"].float(), tensors["labels"].long(), tensors["costs"])


def predict(
    net: MultiExitNet | PreparedNet,
    split: Split,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    costs: Tensor | Sequence[float] | None = None,
    engine: str | None = None,
    precision: str | None = None,
    calibration: Split | None = None,
) -> Predictions:
    """Run `net` over `split` once, in evaluation mode, and leave its mode and place as they were.

    Needs memory for one batch of activations, the logits, and the weights twice. Threads take turns, as the network is
    moved and in evaluation mode while it runs.

    Args:
        net: the network.
        split: images and labels.
        batch_size: images at a time.
        device: the device to compute on; by default the network's own.
        costs: (E,) cost of one image up to and including each exit, in any unit, such as the seconds of
            `eeutils.analysis.seconds.measure_seconds`. By default multiply-adds.
        engine, precision, calibration: see `Cascade`; by default the network runs as it is. `net` may also be a
            `eeutils.engines.PreparedNet`.

    Raises:
        TypeError: if `net` has no exits, or `split` is not a `Split`.
        ValueError: if network, images, classes, `costs` and `device` do not fit together, or a logit is not finite.
    """
    check_split(split)
    if not isinstance(net, PreparedNet) and (engine or precision):
        net = PreparedNet(net, engine or "torch", precision=precision, device=device, calibration=calibration)
    ready, net = (net, net.net) if isinstance(net, PreparedNet) else (None, net)
    check_exits(net)
    if costs is None:
        costs = exit_costs(net, split.image_shape)  # fails at once if the images do not fit
    else:
        costs = checked_costs(costs, net.num_exits)
        if ready is None:
            try_out(net, split, device)
    if ready is None:
        logits = collect_logits(net, split, batch_size=batch_size, device=device)
    else:
        batches = (ready.logits(images) for images, _ in split.batches(batch_size, ready.device))
        logits = torch.cat(list(batches), dim=1)
    check_outputs(split, logits.shape[-1])
    return Predictions(logits.cpu(), split.labels.cpu(), costs)


@torch.inference_mode(False)  # its tensors have no version counter, which shows heads that work in place
@torch.no_grad()
def try_out(net: MultiExitNet, split: Split, device: torch.device | str | None) -> None:
    """Run a copy of `net` without hooks on one image.

    Raises:
        ValueError: if it cannot read the image, or a head works in place (`eeutils.models.contracts.checked_answers`).
    """
    net = remove_hooks(deepcopy(net)).eval()
    at = device_and_dtype(net)[0] if device is None else choose_device(device)
    checked_answers(net, next(_batches(net.to(at), split, 1, at)))


# Tensors of inference mode could not be differentiated later, say to fit a temperature, and would get into the network.
@torch.inference_mode(False)
@torch.no_grad()
def collect_logits(
    net: MultiExitNet, split: Split, *, batch_size: int = 500, device: torch.device | str | None = None
) -> Tensor:
    """Return the logits (E, N, C) float32 of every exit for every image, in evaluation mode, on the device."""
    with _evaluating(net, device) as at:
        logits = [_stacked(net(images), len(images)) for images in _batches(net, split, batch_size, at)]
    return torch.cat(logits, dim=1)


def checked_costs(costs: Tensor | Sequence[float], num_exits: int) -> Tensor:
    """Return `costs` as (E,) float64 on the CPU.

    Raises:
        ValueError: if they are not increasing, positive and finite, one for each exit.
    """
    costs = torch.as_tensor(costs, dtype=torch.float64, device="cpu")
    _check_costs(costs, num_exits)
    return costs


def check_predictions(predictions: Predictions) -> None:
    """Raise a TypeError unless `predictions` is a `Predictions`."""
    if not isinstance(predictions, Predictions):
        kind = type(predictions).__name__
        raise TypeError(f"predictions must be a Predictions, got {kind}; use predict(net, data.val)")


def check_split(split: Split) -> None:
    """Raise a TypeError unless `split` is a `Split`, and a ValueError if its images have no value above 1."""
    if not isinstance(split, Split):
        raise TypeError(
            f"split must be a Split, such as data.test, got {type(split).__name__}; "
            "use Split(images, labels, classes, normalization)"
        )
    check_normalized(split.images[:256])


def check_outputs(split: Split, outputs: int) -> None:
    """Raise a ValueError unless a network with so many outputs answers for the classes of `split`."""
    if len(split.classes) != outputs:
        raise ValueError(f"the network must have {len(split.classes)} outputs, as the data has classes, got {outputs}")


def _is_tensor(value: object, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.dtype == dtype


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    bounds = f" in {value.min().item():g}..{value.max().item():g}" if value.numel() else ""
    return f"{tuple(value.shape)} {value.dtype}{bounds}"


def _check_costs(costs: Tensor, num_exits: int) -> None:
    usable = _is_tensor(costs, (num_exits,), torch.float64)
    if not usable or not (costs.isfinite() & (costs.diff(prepend=costs.new_zeros(1)) > 0)).all():
        raise ValueError(f"costs must be {num_exits} increasing positive float64 numbers, got {costs}")


def _batches(net: MultiExitNet, split: Split, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    _, dtype = device_and_dtype(net)
    return (images.to(dtype) for images, _ in split.batches(batch_size, device))


def _stacked(logits: list[Tensor], num_images: int) -> Tensor:
    check_answers(logits, num_images)
    return torch.stack(logits).float()


@contextmanager
def _evaluating(net: MultiExitNet, device: torch.device | str | None) -> Iterator[torch.device]:
    """Hold `net` on `device` in evaluation mode, then put it back, each module in the mode it was in."""
    with _ONE_AT_A_TIME:
        home, _ = device_and_dtype(net)
        at = home if device is None else choose_device(device)
        training = [module for module in net.modules() if module.training]
        try:
            with channels_last(net.eval().to(at)):
                yield at
        finally:
            net.to(home)
            for module in training:
                module.training = True
