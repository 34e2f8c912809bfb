"""Early-exit inference that saves real time: an image that is done leaves the batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import Decisions, check_fallback, fallback_logits
from eeutils.analysis.policies import Policy, check_policy, leaving
from eeutils.analysis.predictions import check_outputs, check_split, checked_costs
from eeutils.data.splits import Split
from eeutils.device import choose_device
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_answers, check_exits, checked_answers
from eeutils.models.inference import prepared_for_inference
from eeutils.models.memory import check_weights, device_and_dtype
from eeutils.models.multiexit import map_tensors, uncompiled

# Normalised images reach 2 or 3, and hardly one has no value below 0. One that has none and goes beyond this is taken
# for pixels that were never normalised, 0 to 255.
_LARGEST_VALUE = 30.0


@dataclass(frozen=True)
class CascadeResult:
    """What a cascade answers.

    Attributes:
        logits: (N, C) float32 of the exit at which each image left, or what the fallback took where none let it go.
        exit_index: (N,) int64, that exit.
    """

    logits: Tensor
    exit_index: Tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.exit_index):,} images of {self.logits.shape[-1]} classes)"

    @property
    def predicted(self) -> Tensor:
        """(N,) int64."""
        return self.logits.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """(N,) float32, the probability of the predicted class."""
        return self.logits.softmax(-1).amax(-1)


class Cascade:
    """A network that stops computing for an image as soon as `policy` lets it go.

    After each exit only the images that stay are carried on, so a batch shrinks on its way down; when it is empty the
    rest of the network does not run. `eeutils.analysis.decisions.decide` answers the same from saved predictions.

    The cascade works on a copy of `net` made for inference (`eeutils.models.prepared_for_inference`). A network that
    `torch.compile` made is run uncompiled, because batches shrink on their way.

    Args:
        net: the network; it is not changed.
        policy: who leaves where.
        fallback: whose answer counts for an image that no early exit let go, "last" or "most_confident": see
            `eeutils.analysis.decisions.fallback_logits`.
        device: where to compute; by default where the network is.
        dtype: what to compute in; by default each part of the network in what its weights are. `torch.bfloat16` is
            faster where the hardware knows it, CPUs with AMX included, and changes few answers; scores are float32 all
            the same. Thresholds for it are best chosen on `predict(prepared_for_inference(net).bfloat16(), split)`,
            which answers as the cascade does, though those chosen on float32 are hardly worse.

    Raises:
        TypeError: if `net` has no exits, `policy` is no policy, or `dtype` no torch.dtype.
        ValueError: if the policy is for another number of exits, the fallback is unknown, there is no such device, or a
            weight of the network is NaN or infinite, or is not there yet as in a lazy layer.
    """

    def __init__(
        self,
        net: MultiExitNet,
        policy: Policy,
        *,
        fallback: str = "last",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_exits(net)
        check_policy(policy, net.num_exits)
        check_fallback(fallback)
        _check_dtype(dtype)
        net = uncompiled(net)
        home, own_dtype = device_and_dtype(net)
        check_weights(net)
        self.policy = policy
        self.fallback = fallback
        self.device = home if device is None else choose_device(device)
        self.dtype = dtype or own_dtype
        self.net = prepared_for_inference(net).to(device=self.device, dtype=dtype)  # if None, each part keeps its own
        self._stages = list(self.net.stages())
        self._costs: dict[tuple[int, ...], Tensor] = {}  # of images by their shape, as far as asked for

    def __call__(self, images: Tensor) -> CascadeResult:
        """Normalised images (N, C, H, W) float, 1 or more -> logits and exits, on the cascade's device.

        Raises:
            TypeError: if `images` is no tensor.
            ValueError: if the images have another shape or dtype, or were never normalised (an image with no value
                below 0 and one beyond 30), an answer is NaN or infinite, or exits answer other than logits (N, classes)
                of the same classes, two or more.
        """
        check_tensor(images)
        _check_images(images)
        _check_normalized(images)
        return self._answer(images)

    def run(self, split: Split, *, batch_size: int = 256, costs: Tensor | Sequence[float] | None = None) -> Decisions:
        """The cascade over a whole split of uint8 images, in its order; the split normalises them.

        Args:
            split: images and labels.
            batch_size: images at a time.
            costs: (E,) of one image up to and including each exit, as `predict` takes them; by default multiply-adds.

        Returns:
            Where every image left and what came of it, on the CPU.

        Raises:
            TypeError: if `split` is no split.
            ValueError: as for images and as `predict` does, or if the network answers for other than the split's
                classes.
        """
        check_split(split)
        costs = self._costs_of(split) if costs is None else checked_costs(costs, self.net.num_exits)
        result = _joined(self._answer(images) for images, _ in split.batches(batch_size, self.device))
        check_outputs(split, result.logits.shape[-1])
        return Decisions(result.exit_index.cpu(), result.predicted.cpu(), split.labels.cpu(), costs)

    def _costs_of(self, split: Split) -> Tensor:
        shape = tuple(split.images.shape[1:])
        if shape not in self._costs:
            self._costs[shape] = exit_costs(self.net, shape)
        return self._costs[shape]

    def _answer(self, images: Tensor) -> CascadeResult:
        # A copy even of images that need none: a first layer that works in place would write into the caller's.
        x = images.detach().to(self.device, self.dtype, copy=True, memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                logits, exit_index = self._descend(x)
        except RuntimeError:
            with torch.inference_mode():
                checked_answers(self.net, x[:1])  # says what does not fit, if anything
            raise
        _check_answers(logits)
        # Copied outside inference mode, so that the caller may do with them what one may do with a tensor.
        return CascadeResult(logits.clone(), exit_index.clone())

    def _descend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) -> logits (N, classes) and exits (N,), of each image those where it left."""
        rows = torch.arange(len(x), device=self.device)  # whose images are still in
        exit_index = torch.zeros_like(rows)
        answers: list[Tensor] = []  # of every exit so far, for those images: (n, classes)
        last = len(self._stages) - 1
        for index, stage in enumerate(self._stages):
            if index > 0:
                staying = (~leaving(self.policy, torch.stack(answers))).nonzero().flatten()
                if len(staying) == 0:
                    break
                if len(staying) < len(rows):
                    x = map_tensors(partial(_images, index=staying, num_images=len(rows)), x)
                    rows, answers = rows[staying], [answer[staying] for answer in answers]
            x = stage.features(x)
            answer = stage.answer(x)
            check_answers([*answers[-1:], answer], len(rows))
            answers.append(answer.float())  # scores of 16 bits would all be 1 from 0.998 on
            answer = fallback_logits(torch.stack(answers), self.fallback) if index == last else answers[-1]
            if index == 0:
                logits = answer.clone()
            else:  # a deeper answer takes the place of the one before
                logits.index_copy_(0, rows, answer)
                exit_index.index_fill_(0, rows, index)
        return logits, exit_index


def check_tensor(images: Tensor) -> None:
    """See that `images` is a tensor.

    Raises:
        TypeError: that says how to make one.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a torch.Tensor (N, C, H, W), got {type(images).__name__}; load_image(path, size=32) makes "
            "one of a file, torch.from_numpy(array) of an array"
        )


def _images(x: Tensor, index: Tensor, num_images: int) -> Tensor:
    """Some images of a feature map (N, ...); in channels-last memory each is one run of bytes to copy."""
    if x.ndim == 0 or len(x) != num_images:
        raise ValueError(f"units must hand on tensors with the {num_images} images first, got shape {tuple(x.shape)}")
    if x.ndim != 4:
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _joined(results: Iterable[CascadeResult]) -> CascadeResult:
    results = list(results)
    return CascadeResult(
        torch.cat([result.logits for result in results]), torch.cat([result.exit_index for result in results])
    )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must have shape (N, C, H, W) with N of 1 or more, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"a cascade takes normalised floats, got {images.dtype}; apply split.normalization first")


def _check_normalized(images: Tensor) -> None:
    if images.amax() <= _LARGEST_VALUE:  # the usual case, and an image alone is soon computed
        return
    lowest, highest = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    rows = ((lowest >= 0) & (highest > _LARGEST_VALUE)).nonzero().flatten()
    if len(rows):
        raise ValueError(
            f"images {rows[:10].tolist()} of the batch have values from {float(lowest[rows].min()):.4g} to "
            f"{float(highest[rows].max()):.4g}, as pixels have that were never normalised; make them with "
            "Normalization(mean, std)(uint8 images), as split.normalization does"
        )


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16, got {dtype!r}")


def _check_answers(logits: Tensor) -> None:
    """A NaN reaches no threshold: its image gets to the last exit, and here."""
    if not logits.isfinite().all():
        rows = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"the answers for images {rows[:10]} of the batch are NaN or infinite; are the images finite?")
