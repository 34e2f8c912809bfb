"""Overthinking: computation and correct answers lost behind an exit that was right (Kaya et al., arXiv 1810.07052).

Wasteful: an earlier exit was right, so the computation after it was wasted. Destructive: an earlier exit was right, and
the last one is wrong. Both need the labels, so they bound the gain of any policy.

A backdoor causes the destructive effect: a trigger in the image moves the last exit to another class, while early exits
may keep the right one. `attack_success` measures how often each exit follows the trigger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from eeutils.analysis.metrics import bootstrap_interval, draw_kinds, surest_first
from eeutils.analysis.predictions import Predictions
from eeutils.fields import check_range


def first_correct(predictions: Predictions) -> Tensor:
    """(N,) int64, the first exit that gets each image right; E, one past the last, where none does."""
    correct = torch.cat([predictions.correct, torch.ones_like(predictions.correct[:1])])
    return correct.int().argmax(0)


def first_correct_at(predictions: Predictions, exit_index: int) -> Tensor:
    """Positions (n,) of the images that this exit is the first to get right, most confident first."""
    check_range("exit_index", exit_index, 0, predictions.num_exits - 1)
    return surest_first(first_correct(predictions) == exit_index, predictions.confidence[exit_index])


def only_correct_at(predictions: Predictions, exit_index: int) -> Tensor:
    """Positions (n,) of the images that only this exit gets right, most confident first."""
    check_range("exit_index", exit_index, 0, predictions.num_exits - 1)
    alone = predictions.correct[exit_index] & (predictions.correct.sum(0) == 1)
    return surest_first(alone, predictions.confidence[exit_index])


@dataclass(frozen=True)
class Wasteful:
    """The wasteful effect: cost spent after an exit was right."""

    correct: Tensor  # (E,) int64, images that each exit gets right
    newly_correct: Tensor  # (E + 1, C) int64, images of each class that each exit gets right first; last row: no exit
    costs: Tensor  # (E,) float64 of one image up to each exit

    @property
    def unique(self) -> Tensor:
        """(E,) int64, images that each exit is the first to get right."""
        return self.newly_correct[:-1].sum(1)

    @property
    def cumulative(self) -> Tensor:
        """(E,) int64, images that this exit or an earlier one gets right."""
        return self.unique.cumsum(0)

    @property
    def num_images(self) -> int:
        return int(self.newly_correct.sum())

    @property
    def best_accuracy(self) -> float:
        """Share of the images that some exit gets right."""
        return float(self.cumulative[-1]) / self.num_images

    @property
    def mean_cost(self) -> float:
        """Mean cost if images left at the first exit that gets them right, at full cost where none does."""
        return float(self._cost_of(self.newly_correct.sum(1)))

    @property
    def relative_cost(self) -> float:
        """`mean_cost` as a share of the whole network's."""
        return self.mean_cost / float(self.costs[-1])

    def table(self) -> pd.DataFrame:
        """Return one row per exit: cost as a share; images right here, here or earlier, here first."""
        return pd.DataFrame(
            {
                "relative cost": (self.costs / self.costs[-1]).numpy(),
                "correct": self.correct.numpy(),
                "cumulative correct": self.cumulative.numpy(),
                "unique correct": self.unique.numpy(),
            },
            index=pd.RangeIndex(1, len(self.costs) + 1, name="exit"),
        )

    def class_table(self, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one row per class: images, those no exit gets right, cost as a share (NaN without images)."""
        return pd.DataFrame(
            {
                "images": self.newly_correct.sum(0).numpy(),
                "never correct": self.newly_correct[-1].numpy(),
                "relative cost": (self._cost_of(self.newly_correct) / self.costs[-1]).numpy(),
            },
            index=_class_names(classes, self.newly_correct.shape[1]),
        )

    def _cost_of(self, newly_correct: Tensor) -> Tensor:
        """Counts (E + 1, ...) of images by exit -> (...) float64, their mean cost."""
        counts = newly_correct.double()
        return torch.tensordot(torch.cat([self.costs, self.costs[-1:]]), counts, dims=1) / counts.sum(0)


def wasteful(predictions: Predictions) -> Wasteful:
    """Measure the wasteful effect: the cost if every image left at the first exit that gets it right."""
    num_exits, _, num_classes = predictions.logits.shape
    cells = first_correct(predictions) * num_classes + predictions.labels
    counts = cells.bincount(minlength=(num_exits + 1) * num_classes).view(num_exits + 1, num_classes)
    return Wasteful(predictions.correct.sum(1), counts, predictions.costs)


@dataclass(frozen=True)
class Destructive:
    """The destructive effect: D images that an earlier exit gets right and the last one wrong, most confident first."""

    images: Tensor  # (D,) int64, their positions in the table
    exit_index: Tensor  # (D,) int64, the first exit that gets each right
    confidence: Tensor  # (D,), of that exit in the right class
    last_confidence: Tensor  # (D,), of the last exit in a wrong class
    correct: Tensor  # (E - 1,) int64, those that each early exit gets right
    mean_confidence: Tensor  # (E - 1,) float64, of each early exit on those; NaN if there are none
    class_wrong: Tensor  # (C,) int64, images of each class that the last exit gets wrong
    class_destroyed: Tensor  # (C,) int64, those of them that an earlier exit gets right
    num_images: int  # images in the whole table

    @property
    def num_wrong(self) -> int:
        """Images that the last exit gets wrong."""
        return int(self.class_wrong.sum())

    @property
    def share(self) -> float:
        """Share of the last exit's mistakes that an earlier exit gets right; NaN if it makes none."""
        return len(self.images) / self.num_wrong if self.num_wrong else math.nan

    def share_interval(self, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of `share` (lower, upper) over the choice of the images; NaN without mistakes."""
        destroyed, lost = self._drawn(draws, seed).sum(2).T
        return bootstrap_interval(destroyed / (destroyed + lost))

    def table(self) -> pd.DataFrame:
        """Return one row per early exit: images it gets right and the last exit wrong, its confidence on them."""
        early = len(self.correct)
        unique = self.exit_index.bincount(minlength=early)
        return pd.DataFrame(
            {
                "correct": self.correct.numpy(),
                "cumulative correct": unique.cumsum(0).numpy(),
                "unique correct": unique.numpy(),
                "mean confidence": self.mean_confidence.numpy(),
            },
            index=pd.RangeIndex(1, early + 1, name="exit"),
        )

    def class_table(self, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one row per class: the last exit's mistakes, the destructive ones, their share and its interval."""
        destroyed, lost = self._drawn(1000, seed=0).unbind(1)
        low, high = zip(*map(bootstrap_interval, (destroyed / (destroyed + lost)).T), strict=True)
        return pd.DataFrame(
            {
                "wrong at last": self.class_wrong.numpy(),
                "destroyed": self.class_destroyed.numpy(),
                "share": (self.class_destroyed.double() / self.class_wrong).numpy(),
                "low": low,
                "high": high,
            },
            index=_class_names(classes, len(self.class_wrong)),
        )

    def _drawn(self, draws: int, seed: int) -> Tensor:
        """(draws, 2, C) float64, images of each class destroyed and wrong at all exits, in each bootstrap sample."""
        right = torch.tensor([self.num_images - self.num_wrong])
        kinds = torch.cat([self.class_destroyed, self.class_wrong - self.class_destroyed, right])
        return draw_kinds(kinds, draws, seed)[:, :-1].view(draws, 2, len(self.class_wrong))


def destructive(predictions: Predictions) -> Destructive:
    """Measure the destructive effect: images that the last exit gets wrong though an earlier one had them right."""
    wrong = ~predictions.correct[-1]
    had_it = predictions.correct[:-1] & wrong  # (E - 1, N)
    exits = first_correct(predictions)
    at_first = predictions.confidence.gather(0, exits.clamp_max(predictions.num_exits - 1)[None])[0]  # (N,)
    images = surest_first(had_it.any(0), at_first)
    sure = torch.where(had_it, predictions.confidence[:-1].double(), 0.0)
    num_classes = predictions.logits.shape[2]
    return Destructive(
        images=images,
        exit_index=exits[images],
        confidence=at_first[images],
        last_confidence=predictions.confidence[-1, images],
        correct=had_it.sum(1),
        mean_confidence=sure.sum(1) / had_it.sum(1),
        class_wrong=predictions.labels[wrong].bincount(minlength=num_classes),
        class_destroyed=predictions.labels[images].bincount(minlength=num_classes),
        num_images=len(predictions.labels),
    )


def overthinking_table(networks: Mapping[str, Predictions]) -> pd.DataFrame:
    """Return one row per network: both effects as shares, with the 95 % interval of the destructive one.

    `right at some exit` is the accuracy of an oracle that knows which exit to believe.
    """
    rows = {}
    for name, predictions in networks.items():
        spared, destroyed = wasteful(predictions), destructive(predictions)
        low, high = destroyed.share_interval()
        rows[name] = {
            "right at last exit": float(spared.correct[-1]) / spared.num_images,
            "right at some exit": spared.best_accuracy,
            "cost of the first right exit": spared.relative_cost,
            "destructive share": destroyed.share,
            "destructive share, from": low,
            "to": high,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def attack_success(predictions: Predictions, target: int) -> Tensor:
    """(E,) float64, share of the images of other classes that each exit takes for class `target`; NaN without any.

    On images with a backdoor's trigger this is the attack's success rate (Gu et al., BadNets, arXiv 1708.06733); the
    same images without the trigger give the baseline.
    """
    check_range("target", target, 0, predictions.logits.shape[2] - 1)
    others = predictions.labels != target
    return (predictions.predicted[:, others] == target).double().mean(1)


def _class_names(classes: Sequence[str] | None, count: int) -> pd.Index:
    return pd.Index(range(count) if classes is None else classes, name="class")
