"""Who leaves where: the rules by which an image stops at an exit.

One piece of code decides for the table (`decide`) and for live inference (`eeutils.cascade.Cascade`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from eeutils.analysis.predictions import Predictions


class Policy(Protocol):
    """A rule that sees what every exit has said so far of the images still in the network.

    It has to judge every image by itself, whatever others are in the batch: then the live cascade, whose batches
    shrink, and the table agree.
    """

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) of the exits 0..e -> (n,) bool, True for the images that leave at exit e."""
        ...

    def check(self, num_exits: int) -> None:
        """Raise a ValueError if this policy is not for a network with `num_exits` exits."""
        ...


def confidence(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability (BranchyNet and SDN use it or its like)."""
    return logits.softmax(-1).amax(-1)


def certainty(logits: Tensor) -> Tensor:
    """(..., C) -> (...), one minus the softmax's entropy as a share of the largest (BranchyNet, arXiv 1709.01686)."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)  # rounding puts an even softmax a little below 0


def margin(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability minus the second largest."""
    best = logits.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"confidence": confidence, "entropy": certainty, "margin": margin}


def score(logits: Tensor, name: str = "confidence") -> Tensor:
    """How sure an answer is: logits (..., C) -> (...) in 0 (not at all) to 1.

    Raises:
        ValueError: if `name` is not "confidence", "entropy" or "margin".
    """
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; choose from {sorted(_SCORES)}")
    return _SCORES[name](logits)


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at the first exit whose score reaches its threshold.

    Attributes:
        thresholds: one number for every early exit, or one each, shallowest first: in [0, 1], or infinity where nobody
            is to leave (a network sure of itself scores 1 after rounding, so a threshold of 1 may still let images go).
        score: how sure an answer is: "confidence", "entropy" or "margin".
    """

    thresholds: float | tuple[float, ...]
    score: str = "confidence"

    def __post_init__(self) -> None:
        if self.score not in _SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose from {sorted(_SCORES)}")
        wrong = [value for value in self._as_tuple if not (0 <= value <= 1 or value == math.inf)]
        if wrong:
            raise ValueError(f"thresholds must be in [0, 1], or infinite where nobody is to leave, got {wrong}")

    @property
    def _as_tuple(self) -> tuple[float, ...]:
        return self.thresholds if isinstance(self.thresholds, tuple) else (float(self.thresholds),)

    def check(self, num_exits: int) -> None:
        """Raise a ValueError unless there is one threshold, or one for each of the `num_exits - 1` early exits."""
        if isinstance(self.thresholds, tuple) and len(self.thresholds) != num_exits - 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds {self.thresholds}, but a network with {num_exits} exits has "
                f"{num_exits - 1} early ones"
            )

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool; only those of exit e matter here."""
        index = len(logits) - 1
        threshold = self.thresholds[index] if isinstance(self.thresholds, tuple) else self.thresholds
        return _SCORES[self.score](logits[-1]) >= threshold


@dataclass(frozen=True)
class Decisions:
    """Where every image of a split left, and what came of it.

    Attributes:
        exit_index: (N,) int64.
        predicted: (N,) int64, the class that exit named.
        labels: (N,) int64.
        costs: (E,) float64, multiply-adds up to each exit.
    """

    exit_index: Tensor
    predicted: Tensor
    labels: Tensor
    costs: Tensor

    @cached_property
    def accuracy(self) -> float:
        """Share of the images whose class was named."""
        return float((self.predicted == self.labels).double().mean())

    @cached_property
    def mean_cost(self) -> float:
        """Multiply-adds an image, on average."""
        return float(self.costs[self.exit_index].mean())

    @property
    def relative_cost(self) -> float:
        """`mean_cost` as a share of the whole network's."""
        return self.mean_cost / float(self.costs[-1])

    @property
    def exit_rates(self) -> Tensor:
        """(E,) float64, share of the images that left at each exit."""
        return torch.bincount(self.exit_index, minlength=len(self.costs)).double() / len(self.exit_index)


def decide(predictions: Predictions, policy: Policy) -> Decisions:
    """Let `policy` decide for every image of the table.

    Raises:
        ValueError: if the policy is for another number of exits, or does not answer one bool an image.
    """
    index = exit_indices(predictions.logits, policy)
    predicted = predictions.predicted.gather(0, index[None])[0]
    return Decisions(index, predicted, predictions.labels, predictions.costs)


def exit_indices(logits: Tensor, policy: Policy) -> Tensor:
    """Logits (E, N, C) -> the exit at which each image leaves, (N,) int64; the last takes whoever is left."""
    num_exits = len(logits)
    policy.check(num_exits)
    left_at = torch.full(logits.shape[1:2], num_exits - 1, device=logits.device)
    for index in reversed(range(num_exits - 1)):  # from deep to shallow: the first exit to let an image go wins
        left_at[leaving(policy, logits[: index + 1])] = index
    return left_at


def leaving(policy: Policy, logits: Tensor) -> Tensor:
    """What `policy` says of logits (e + 1, n, C): (n,) bool.

    Raises:
        ValueError: if it says something else.
    """
    leaves = policy.leaves(logits)
    if leaves.dtype != torch.bool or leaves.shape != logits.shape[1:2]:
        raise ValueError(
            f"{type(policy).__name__}.leaves() must answer ({logits.shape[1]},) bool for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(leaves.shape)} {leaves.dtype}"
        )
    return leaves
