"""Overthinking: what a network would gain if every image left at an exit that has it right (Kaya et al., ICML 2019).

Wasteful: an earlier exit was right already, and all that came after was computed for nothing. Destructive: an earlier
exit was right, and the last one is wrong. Both need the labels, so they say what could be had, not how to get it
(Shallow-Deep Networks, arXiv 1810.07052).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eeutils.analysis.metrics import surest_first
from eeutils.analysis.predictions import Predictions


def first_correct(predictions: Predictions) -> Tensor:
    """(N,) int64, the first exit that gets each image right; E, one past the last, where none does."""
    somewhere = torch.cat([predictions.correct, torch.ones_like(predictions.correct[:1])])
    return somewhere.int().argmax(0)


def only_correct_at(predictions: Predictions, exit_index: int) -> Tensor:
    """Positions of the images that this exit gets right and no other one does, surest first, (n,) int64."""
    alone = predictions.correct[exit_index] & (predictions.correct.sum(0) == 1)
    return surest_first(alone, predictions.confidence[exit_index])


@dataclass(frozen=True)
class Wasteful:
    """What is spent after an exit was right.

    Attributes:
        correct: (E,) int64, images that each exit gets right.
        newly_correct: (E + 1, C) int64, of the images of each class those that each exit is the first to get right; in
            the last row those that none does.
        costs: (E,) float64, multiply-adds of one image up to each exit.
    """

    correct: Tensor
    newly_correct: Tensor
    costs: Tensor

    @property
    def unique(self) -> Tensor:
        """(E,) int64, images that each exit gets right and no earlier one does."""
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
        """Multiply-adds an image if each left at the first exit that gets it right, or paid in full where none does."""
        return float(self._cost_of(self.newly_correct.sum(1)))

    @property
    def relative_cost(self) -> float:
        """`mean_cost` as a share of the whole network's."""
        return self.mean_cost / float(self.costs[-1])

    def table(self) -> pd.DataFrame:
        """One row an exit: cost as a share, images it gets right, it or an earlier one does, it and no earlier one."""
        return pd.DataFrame(
            {
                "relative cost": (self.costs / self.costs[-1]).numpy(),
                "correct": self.correct.numpy(),
                "cumulative correct": self.cumulative.numpy(),
                "unique correct": self.unique.numpy(),
            },
            index=_exit_names(len(self.costs)),
        )

    def class_table(self, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a class, by name if given: images, those no exit gets right, cost as a share (NaN if no image)."""
        return pd.DataFrame(
            {
                "images": self.newly_correct.sum(0).numpy(),
                "never correct": self.newly_correct[-1].numpy(),
                "relative cost": (self._cost_of(self.newly_correct) / self.costs[-1]).numpy(),
            },
            index=_class_names(classes, self.newly_correct.shape[1]),
        )

    def _cost_of(self, newly_correct: Tensor) -> Tensor:
        """Counts (E + 1, ...) by the exit where images leave -> (...) float64, their mean cost."""
        counts = newly_correct.double()
        return torch.tensordot(torch.cat([self.costs, self.costs[-1:]]), counts, dims=1) / counts.sum(0)


def wasteful(predictions: Predictions) -> Wasteful:
    """The wasteful effect: costs if every image left at the first exit that gets it right."""
    num_exits, _, num_classes = predictions.logits.shape
    cells = first_correct(predictions) * num_classes + predictions.labels
    counts = cells.bincount(minlength=(num_exits + 1) * num_classes).view(num_exits + 1, num_classes)
    return Wasteful(predictions.correct.sum(1), counts, predictions.costs)


@dataclass(frozen=True)
class Destructive:
    """Images that an earlier exit gets right and the last one wrong (D of them, surest first).

    Attributes:
        images: (D,) int64, their positions in the table.
        exit_index: (D,) int64, the first exit that gets each right.
        confidence: (D,) that exit's, in the right class.
        last_confidence: (D,) the last exit's, in a wrong class.
        correct: (E - 1,) int64, how many of them each early exit gets right.
        mean_confidence: (E - 1,) float64, of each early exit on those that it gets right; NaN if there are none.
        class_wrong: (C,) int64, images of each class that the last exit gets wrong.
        class_destroyed: (C,) int64, those of them that an earlier exit gets right.
        num_images: N, of the whole table.
    """

    images: Tensor
    exit_index: Tensor
    confidence: Tensor
    last_confidence: Tensor
    correct: Tensor
    mean_confidence: Tensor
    class_wrong: Tensor
    class_destroyed: Tensor
    num_images: int

    @property
    def num_wrong(self) -> int:
        """Images that the last exit gets wrong."""
        return int(self.class_wrong.sum())

    @property
    def share(self) -> float:
        """Share of the last exit's mistakes that an earlier exit would not have made; NaN if it makes none."""
        return len(self.images) / self.num_wrong if self.num_wrong else math.nan

    def share_interval(self, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of `share`: its lower and upper end, NaN if the last exit makes no mistake.

        Covers the luck of the test images, not that of a training seed. An image counts as one of three kinds (right
        at last, destroyed, wrong throughout), so to draw the images anew is to draw how many there are of each kind.

        Args:
            draws: bootstrap samples; those without a mistake say nothing and are left out.
            seed: of the draws.
        """
        if not self.num_wrong:
            return math.nan, math.nan
        kinds = np.array([len(self.images), self.num_wrong - len(self.images), self.num_images - self.num_wrong])
        drawn = np.random.default_rng(seed).multinomial(self.num_images, kinds / self.num_images, size=draws)
        destroyed, wrong = drawn[:, 0], drawn[:, :2].sum(1)
        low, high = np.quantile(destroyed[wrong > 0] / wrong[wrong > 0], [0.025, 0.975])
        return float(low), float(high)

    def table(self) -> pd.DataFrame:
        """One row an early exit: images it gets right and the last exit wrong, of them new ones, its confidence."""
        early = len(self.correct)
        unique = self.exit_index.bincount(minlength=early)
        return pd.DataFrame(
            {
                "correct": self.correct.numpy(),
                "cumulative correct": unique.cumsum(0).numpy(),
                "unique correct": unique.numpy(),
                "mean confidence": self.mean_confidence.numpy(),
            },
            index=_exit_names(early),
        )

    def class_table(self, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a class, by name if given: the last exit's mistakes, destroyed ones, their share (or NaN)."""
        return pd.DataFrame(
            {
                "wrong at last": self.class_wrong.numpy(),
                "destroyed": self.class_destroyed.numpy(),
                "share": (self.class_destroyed.double() / self.class_wrong).numpy(),
            },
            index=_class_names(classes, len(self.class_wrong)),
        )


def destructive(predictions: Predictions) -> Destructive:
    """The destructive effect: what the last exit gets wrong though an earlier one had it right."""
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


def _exit_names(count: int) -> pd.Index:
    return pd.Index(range(1, count + 1), name="exit")


def _class_names(classes: Sequence[str] | None, count: int) -> pd.Index:
    if classes is not None and len(classes) != count:
        raise ValueError(f"the table is for {count} classes, got {len(classes)} names {list(classes)}")
    return pd.Index(range(count) if classes is None else classes, name="class")
