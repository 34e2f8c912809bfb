"""The one table that every analysis reads: the logits of every exit for every image of a split."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from eeutils.analysis.costs import exit_costs
from eeutils.data.splits import Split, check_split
from eeutils.device import choose_device
from eeutils.engines import PreparedNet
from eeutils.errors import require
from eeutils.fields import check_type, described
from eeutils.files import load_tensors, reading, save_tensors
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_answers, check_exits, checked_answers, without_hooks
from eeutils.models.memory import channels_last, device_and_dtype

_ONE_AT_A_TIME = RLock()


@dataclass(frozen=True)
class Predictions:
    """Logits of N images in C classes at all E exits of a network, on the CPU.

    Costs are multiply-adds of one image up to and including each exit, with all heads on the way, or another measure
    that was given to `predict`.
    """

    logits: Tensor  # (E, N, C) float32, shallowest exit first, finite, of two classes or more
    labels: Tensor  # (N,) int64
    costs: Tensor  # (E,) float64, rising
    head_costs: Tensor | None = None  # (E,) float64, which an exit that is switched off saves; by default none

    def __post_init__(self) -> None:
        shape = getattr(self.logits, "shape", ())
        floats = torch.float32, torch.float64  # in 16 bits all confidences near 1 would be equal
        usable = len(shape) == 3 and 0 not in shape and shape[2] > 1 and self.logits.dtype in floats
        _check(usable and self.logits.isfinite().all(), "logits", "finite (E, N, C) float32, C > 1", self.logits)
        exits, images, classes = shape
        usable = _is_tensor(self.labels, (images,), torch.int64)
        usable = usable and self.labels.min() >= 0 and self.labels.max() < classes
        _check(usable, "labels", f"({images},) int64 in 0..{classes - 1}", self.labels)
        usable = _is_tensor(self.costs, (exits,), torch.float64) and _are_costs(self.costs)
        _check(usable, "costs", f"({exits},) float64, increasing and positive", self.costs)
        usable = self.head_costs is None or _is_tensor(self.head_costs, (exits,), torch.float64)
        _check(usable, "head_costs", f"({exits},) float64", self.head_costs)

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
        return replace(self, logits=self.logits[:, index], labels=self.labels[index])

    def costs_without(self, exits: Sequence[int]) -> Tensor:
        """(E,) `costs` if `exits` are switched off and do not run."""
        if self.head_costs is None:
            return self.costs
        saved = torch.zeros_like(self.costs)
        saved[list(exits)] = self.head_costs[list(exits)]
        return self.costs - saved.cumsum(0)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; logits as float16, half the size, rounded by 0.05 %."""
        logits = self.logits.half()
        _check(logits.isfinite().all(), "logits", "small enough for float16", self.logits)
        heads = {} if self.head_costs is None else {"head_costs": self.head_costs}
        save_tensors(path, {"logits": logits, "labels": self.labels.int(), "costs": self.costs} | heads)

    @staticmethod
    def load(path: Path | str) -> "Predictions":
        """Read what `save` wrote."""
        tensors, _ = load_tensors(path)
        with reading(path):
            logits, labels = tensors["logits"].float(), tensors["labels"].long()
            return Predictions(logits, labels, tensors["costs"], tensors.get("head_costs"))


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
        net: the network, or a `eeutils.engines.PreparedNet`.
        device: where to compute; by default where the network is.
        costs: (E,) of one image up to each exit, such as those of `measure_seconds`; by default multiply-adds.
        engine, precision, calibration: see `Cascade`; by default the network runs as it is.

    Raises:
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
            _try_out(net, split, device)
    if ready is None:
        logits = collect_logits(net, split, batch_size=batch_size, device=device)
    else:
        batches = (ready.logits(images) for images, _ in split.batches(batch_size, ready.device))
        logits = torch.cat(list(batches), dim=1)
    check_outputs(split, logits.shape[-1])
    return Predictions(logits.cpu(), split.labels.cpu(), costs)


@torch.inference_mode(False)  # its tensors have no version counter, which shows heads that work in place
@torch.no_grad()
def _try_out(net: MultiExitNet, split: Split, device: torch.device | str | None) -> None:
    """Check a copy of `net` on one image, as `checked_answers` does."""
    net = without_hooks(net)
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
    """Return `costs` as (E,) float64 on the CPU; raise ValueError unless they increase, are positive and finite."""
    costs = torch.as_tensor(costs, dtype=torch.float64, device="cpu")
    _check(costs.shape == (num_exits,) and _are_costs(costs), "costs", f"{num_exits}, increasing and positive", costs)
    return costs


def check_predictions(predictions: Predictions) -> None:
    """Raise TypeError unless `predictions` is a `Predictions`."""
    check_type("predictions", predictions, Predictions, "use predict(net, data.val)")


def check_outputs(split: Split, outputs: int) -> None:
    """Raise ValueError unless a network with so many outputs answers for the classes of `split`."""
    count = len(split.classes)
    require(count == outputs, f"the network must have {count} outputs, one for each class, got {outputs}")


def _check(fits: bool | Tensor, name: str, requirement: str, value: object) -> None:
    if not fits:
        is_filled = isinstance(value, Tensor) and value.numel()
        extremes = f" in {value.min().item():g}..{value.max().item():g}" if is_filled else ""
        raise ValueError(f"{name} must be {requirement}, got {described(value)}{extremes}")


def _is_tensor(value: object, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.dtype == dtype


def _are_costs(costs: Tensor) -> bool:
    return bool((costs.isfinite() & (costs.diff(prepend=costs.new_zeros(1)) > 0)).all())


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
