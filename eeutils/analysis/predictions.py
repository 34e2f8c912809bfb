"""The one table that every analysis reads: the logits of every exit for every image of a split."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eeutils.analysis.costs import exit_costs
from eeutils.device import choose_device
from eeutils.errors import IntegrityError
from eeutils.files import save_tensors
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_answers, check_exits, checked_answers
from eeutils.models.memory import channels_last, device_and_dtype


@dataclass(frozen=True)
class Predictions:
    """What a network with E exits says of N images in C classes, on the CPU.

    Attributes:
        logits: (E, N, C) float32, shallowest exit first, finite, of two classes or more.
        labels: (N,) int64.
        costs: (E,) float64 of one image up to and including each exit, all heads passed counted: multiply-adds, or
            another measure that was given to `predict`.

    Raises:
        TypeError: if one of them is no tensor.
        ValueError: if their shapes, dtypes or numbers are not as above.
    """

    logits: Tensor
    labels: Tensor
    costs: Tensor

    def __post_init__(self) -> None:
        for each in fields(self):
            if not isinstance(value := getattr(self, each.name), Tensor):
                kind = type(value).__name__
                raise TypeError(f"{each.name} must be a torch.Tensor, got {kind}; torch.as_tensor makes one")
        if self.logits.ndim != 3 or 0 in self.logits.shape or self.logits.shape[2] < 2:
            raise ValueError(
                f"logits must have shape (E, N, C), E and N 1 or more, C 2 or more, got {tuple(self.logits.shape)}"
            )
        if self.logits.dtype not in (torch.float32, torch.float64):  # of 16 bits all confidences near 1 would be alike
            raise ValueError(f"logits must be float32, got {self.logits.dtype}; convert them with .float()")
        num_exits, num_images, num_classes = self.logits.shape
        if self.labels.shape != (num_images,) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be ({num_images},) int64 to fit the logits, got {tuple(self.labels.shape)} "
                f"{self.labels.dtype}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels run from {low} to {high}, but the logits are for classes 0..{num_classes - 1}")
        _check_costs(self.costs, num_exits)
        broken = ~self.logits.isfinite().flatten(1).all(1)
        if broken.any():
            exits = broken.nonzero().flatten().tolist()
            raise ValueError(f"logits of exits {exits} are NaN or infinite; are the network's weights finite?")

    def __repr__(self) -> str:
        exits, images, classes = self.logits.shape
        accuracy = " / ".join(f"{share:.2%}" for share in self.accuracy.tolist())
        return f"{type(self).__name__}({images:,} images, {exits} exits, {classes} classes; accuracy {accuracy})"

    @property
    def num_exits(self) -> int:
        return self.logits.shape[0]

    @property
    def relative_costs(self) -> Tensor:
        """(E,) costs as shares of the whole network's."""
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
        """(E, N) the probability of the predicted class."""
        return self.probs.amax(-1)

    @cached_property
    def correct(self) -> Tensor:
        """(E, N) bool."""
        return self.predicted == self.labels

    @cached_property
    def accuracy(self) -> Tensor:
        """(E,) float64, share of the images that each exit gets right."""
        return self.correct.double().mean(1)

    def take(self, index: Tensor) -> "Predictions":
        """The predictions for the images that `index` (positions or a boolean mask) picks."""
        return Predictions(self.logits[:, index], self.labels[index], self.costs)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; logits as float16, half the size, rounded by 0.05 %.

        Raises:
            ValueError: if a logit is too large for float16.
            StorageError: if the file cannot be written.
        """
        largest = float(self.logits.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(f"a logit of size {largest:.4g} does not fit into float16; is the network trained?")
        tensors = {"logits": self.logits.half(), "labels": self.labels.to(torch.int32), "costs": self.costs}
        save_tensors(path, tensors)

    @staticmethod
    def load(path: Path | str) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if it is not a file of predictions, or is visibly damaged; a sha256 shows the rest.
        """
        try:
            tensors = load_file(path)
            return Predictions(tensors["logits"].float(), tensors["labels"].long(), tensors["costs"].double())
        except (SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{path} holds no predictions: {error!r}") from error


class Batched(Protocol):
    """A split of images that can be walked in batches (`eeutils.data.Split`)."""

    images: Tensor
    labels: Tensor

    def batches(self, batch_size: int, device: torch.device | str) -> Iterable[tuple[Tensor, Tensor]]:
        """Normalised images (n, C, H, W) and labels (n,)."""


def predict(
    net: MultiExitNet,
    split: Batched,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    costs: Tensor | Sequence[float] | None = None,
) -> Predictions:
    """Run `net` over `split` once, in evaluation mode; the network is left in the mode and place it was in.

    Memory: one batch of activations, the logits, and the weights twice, whatever the number of images.

    Not for several threads at once on one network, for meanwhile its weights lie elsewhere and it is in evaluation
    mode: give each thread a copy. A `Cascade`, which has one, may be asked by several.

    Args:
        net: the network; its weights are used where they are unless `device` says otherwise.
        split: images and labels.
        batch_size: images at a time.
        device: where to compute; by default where the network is.
        costs: (E,) numbers for one image up to and including each exit, in any unit, such as the seconds of
            `eeutils.analysis.seconds.measure_seconds`; kept as float64. By default multiply-adds.

    Raises:
        TypeError: if `net` has no exits, or `split` is no split.
        ValueError: if the network cannot read images of this size and number of channels, or answers NaN or infinity,
            or for other than the split's classes, two or more; if an early exit's head works in place on what it
            reads, see `eeutils.analysis.costs.measure_costs`; if `costs` are not increasing, positive and finite; a
            lazy layer has no weights yet; or there is no such device.
    """
    check_exits(net)
    check_split(split)
    if costs is None:
        costs = exit_costs(net, tuple(split.images.shape[1:]))  # first: it finds out at once whether the images fit
    else:
        costs = checked_costs(costs, net.num_exits)
        try_out(net, split, device)
    logits = collect_logits(net, split, batch_size=batch_size, device=device)
    check_outputs(split, logits.shape[-1])
    return Predictions(logits.cpu(), split.labels.cpu(), costs)


@torch.inference_mode(False)  # its tensors do not tell what was written into them
@torch.no_grad()
def try_out(net: MultiExitNet, split: Batched, device: torch.device | str | None) -> None:
    """Answer one image, to see that the network can read it and that its heads work as they must.

    Raises:
        ValueError: if not, see `eeutils.models.contracts.checked_answers`.
    """
    with _evaluating(net, device) as at:
        checked_answers(net, next(_batches(net, split, 1, at)))


# Not in inference mode: its tensors could not be differentiated later, to fit a temperature say, and a caller's own
# would get into the network's weights where these are put back.
@torch.inference_mode(False)
@torch.no_grad()
def collect_logits(
    net: MultiExitNet, split: Batched, *, batch_size: int = 500, device: torch.device | str | None = None
) -> Tensor:
    """Logits (E, N, C) float32 of every exit for every image of `split`, in evaluation mode, on the device."""
    with _evaluating(net, device) as at:
        answers = [_stacked(net(images), len(images)) for images in _batches(net, split, batch_size, at)]
    return torch.cat(answers, dim=1)


def checked_costs(costs: Tensor | Sequence[float], num_exits: int) -> Tensor:
    """`costs` of one image up to each exit as (E,) float64 on the CPU.

    Raises:
        ValueError: if they are not increasing, positive and finite, one for each exit.
    """
    costs = torch.as_tensor(costs, dtype=torch.float64, device="cpu")
    _check_costs(costs, num_exits)
    return costs


def _check_costs(costs: Tensor, num_exits: int) -> None:
    steps = costs.diff(prepend=costs.new_zeros(1)) if costs.shape == (num_exits,) else None
    if steps is None or not bool(((steps > 0) & steps.isfinite()).all()):
        raise ValueError(f"costs must be {num_exits} increasing positive numbers, got {costs.tolist()}")
    if costs.dtype != torch.float64:
        raise ValueError(f"costs must be float64, got {costs.dtype}; convert them with .double()")


def check_predictions(predictions: Predictions) -> None:
    """See that `predictions` are a table.

    Raises:
        TypeError: that says how to make one.
    """
    if not isinstance(predictions, Predictions):
        kind = type(predictions).__name__
        raise TypeError(f"{kind} is no table of predictions; predict(net, data.val) makes one")


def check_split(split: Batched) -> None:
    """See that images come with labels and in batches.

    Raises:
        TypeError: if not.
    """
    if not hasattr(split, "batches"):
        raise TypeError(
            f"{type(split).__name__} is no split of a data set, such as data.test; of tensors make one: "
            "eeutils.data.Split(images, labels, classes, normalization)"
        )


def check_outputs(split: Batched, outputs: int) -> None:
    """See that a network answers for the classes of `split`, if it names them.

    Raises:
        ValueError: if not.
    """
    classes = getattr(split, "classes", None)
    if classes is not None and len(classes) != outputs:
        raise ValueError(f"the network has {outputs} outputs, the data {len(classes)} classes")


def _batches(net: MultiExitNet, split: Batched, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    _, dtype = device_and_dtype(net)
    return (images.to(dtype) for images, _ in split.batches(batch_size, device))


def _stacked(answers: list[Tensor], num_images: int) -> Tensor:
    check_answers(answers, num_images)
    return torch.stack(answers).float()


@contextmanager
def _evaluating(net: MultiExitNet, device: torch.device | str | None) -> Iterator[torch.device]:
    """`net` on `device` in evaluation mode, and afterwards back where and as it was, each part in the mode it was in.

    Each part by itself: while exits alone are trained the backbone is held in evaluation mode.
    """
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
