"""Who leaves where: the rules by which an image stops at an exit.

One piece of code decides for the table (`decide`) and for live inference (`eeutils.cascade.Cascade`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from eeutils.analysis.predictions import Predictions

# The grid of Shallow-Deep Networks (arXiv 1810.07052); `eeutils.analysis.thresholds.threshold_grid` is finer.
SDN_THRESHOLDS = (0.1, 0.15, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


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


def ensemble_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C), exits first -> (E, ...), what the exits so far give, on average, to the class this exit names."""
    return _given_to_named(logits, _running_mean(logits.softmax(-1)))


def geometric_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C), exits first -> (E, ...), likewise with the geometric mean, made to sum to 1.

    One exit that gives a class next to nothing vetoes it (Zero Time Waste, arXiv 2106.05409, weighs the exits as well).
    """
    return _given_to_named(logits, _running_mean(logits.log_softmax(-1)).softmax(-1))


def _running_mean(values: Tensor) -> Tensor:
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return values.cumsum(0) / counts.view(-1, *[1] * (values.ndim - 1))


def _given_to_named(logits: Tensor, probs: Tensor) -> Tensor:
    """The exit's own answer is what an image leaves with, so that is the class to be sure of."""
    return probs.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)


_OWN_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"confidence": confidence, "entropy": certainty, "margin": margin}
_SHARED_SCORES = {"ensemble": ensemble_confidence, "geometric": geometric_confidence}  # of an exit and those before it
_SCORES = _OWN_SCORES | _SHARED_SCORES


def score_of(logits: Tensor, name: str = "confidence") -> Tensor:
    """How sure an answer is: logits (..., C) -> (...) in 0 (not at all) to 1.

    For "ensemble" and "geometric" the first dimension has to be the exits, from the first one on: an exit's score
    counts in what the exits before it said.

    Raises:
        ValueError: if `name` is not "confidence", "entropy", "margin", "ensemble" or "geometric".
    """
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; choose from {sorted(_SCORES)}")
    return _SCORES[name](logits)


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at the first exit whose score reaches its threshold.

    Attributes:
        thresholds: one number for every early exit, or a sequence of one each, shallowest first, kept as a tuple: in
            [0, 1], or infinity where nobody is to leave (a network sure of itself scores 1 after rounding, so a
            threshold of 1 may still let images go).
        score: how sure an answer is, larger is surer: "confidence", "entropy" (one minus its share of the
            largest possible), "margin", "ensemble" or "geometric", see `score_of`.

    Raises:
        ValueError: if thresholds are none of these, or the score is unknown.
    """

    thresholds: float | Sequence[float] | Tensor
    score: str = "confidence"

    def __post_init__(self) -> None:
        if self.score not in _SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose from {sorted(_SCORES)}")
        thresholds = _as_numbers(self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        values = thresholds if isinstance(thresholds, tuple) else (thresholds,)
        wrong = [value for value in values if not (0 <= value <= 1 or value == math.inf)]
        if wrong:
            raise ValueError(f"thresholds must be in [0, 1], or infinite where nobody is to leave, got {wrong}")

    def check(self, num_exits: int) -> None:
        """Raise a ValueError unless there is one threshold, or one for each of the `num_exits - 1` early exits."""
        if isinstance(self.thresholds, tuple) and len(self.thresholds) != num_exits - 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds {self.thresholds}, but a network with {num_exits} exits has "
                f"{num_exits - 1} early ones"
            )

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        index = len(logits) - 1
        threshold = self.thresholds[index] if isinstance(self.thresholds, tuple) else self.thresholds
        seen = logits if self.score in _SHARED_SCORES else logits[-1:]
        return _SCORES[self.score](seen)[-1] >= threshold


def _as_numbers(thresholds: object) -> float | tuple[float, ...]:
    try:
        numbers = torch.as_tensor(thresholds, dtype=torch.float64).tolist()
        return tuple(map(float, numbers)) if isinstance(numbers, list) else numbers
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"thresholds must be a number, or a sequence of numbers, got {thresholds!r}") from error


@dataclass(frozen=True)
class PatiencePolicy:
    """Leave when the last `patience` + 1 exits name the same class (PABEE: Zhou et al., 2020, arXiv 2006.04152).

    With 0 everybody leaves at the first exit; where there are no more than `patience` early exits nobody leaves early.

    Attributes:
        patience: how often in a row an exit has to name what the one before it named.
    """

    patience: int

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 0:
            raise ValueError(f"patience is a number of exits, 0 or more, got {self.patience!r}")

    def check(self, num_exits: int) -> None:
        """Nothing to object to: patience goes with any number of exits."""

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        if len(logits) <= self.patience:
            return torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        named = logits[-self.patience - 1 :].argmax(-1)
        return (named == named[-1]).all(0)


@dataclass(frozen=True)
class AgreementPolicy:
    """Leave when `count` of the exits so far, in a row or not, name the same class (Sun et al., arXiv 2105.13792).

    The exit at which that happens is one of them, so what an image leaves with is the class agreed on.

    Attributes:
        count: votes a class needs, 1 or more; in a network with fewer early exits nobody leaves early.
    """

    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count is a number of exits, 1 or more, got {self.count!r}")

    def check(self, num_exits: int) -> None:
        """Nothing to object to: a vote goes with any number of exits."""

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        named = logits.argmax(-1)
        return (named == named[-1]).sum(0) >= self.count


@dataclass(frozen=True)
class Decisions:
    """Where every image of a split left, and what came of it.

    Attributes:
        exit_index: (N,) int64.
        predicted: (N,) int64, the class that exit named, or the fallback for those that none let go early.
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


def _last(logits: Tensor) -> Tensor:
    return logits[-1]


def _most_confident(logits: Tensor) -> Tensor:
    surest = confidence(logits).argmax(0)  # the first of those equally sure
    return logits[surest, torch.arange(len(surest), device=logits.device)]


_FALLBACKS: dict[str, Callable[[Tensor], Tensor]] = {"last": _last, "most_confident": _most_confident}


def check_fallback(name: str) -> None:
    """Raise a ValueError with the choices unless `name` is a fallback."""
    if name not in _FALLBACKS:
        raise ValueError(f"unknown fallback {name!r}; choose from {sorted(_FALLBACKS)}")


def fallback_logits(logits: Tensor, name: str) -> Tensor:
    """Logits (E, n, C) of all exits -> (n, C), what an image answers that no early exit let go.

    Args:
        logits: of every exit.
        name: "last", the last exit's answer; or "most_confident", that of the exit with the largest softmax probability
            (as in the experiments of Shallow-Deep Networks). The whole network has been paid for either way.

    Raises:
        ValueError: if `name` is neither.
    """
    check_fallback(name)
    return _FALLBACKS[name](logits)


def with_fallback(predictions: Predictions, name: str) -> Predictions:
    """The table in which the last exit answers what the fallback `name` says, for sweeps and choices of thresholds.

    Raises:
        ValueError: see `fallback_logits`.
    """
    check_fallback(name)
    if name == "last":
        return predictions
    answers = fallback_logits(predictions.logits, name)
    return Predictions(torch.cat([predictions.logits[:-1], answers[None]]), predictions.labels, predictions.costs)


def decide(predictions: Predictions, policy: Policy, fallback: str = "last") -> Decisions:
    """Let `policy` decide for every image of the table.

    Args:
        predictions: the table.
        policy: who leaves where.
        fallback: whose answer counts for an image that no early exit let go: see `fallback_logits`.

    Raises:
        ValueError: if the policy is for another number of exits, or does not answer one bool an image, or the fallback
            is unknown.
    """
    index = exit_indices(predictions.logits, policy)
    predicted = with_fallback(predictions, fallback).predicted.gather(0, index[None])[0]
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
