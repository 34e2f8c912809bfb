"""Decisions: where a policy lets every image of a table leave, and what comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eeutils.analysis.policies import Policy, check_policy, confidence, leaving
from eeutils.analysis.predictions import Predictions, check_predictions


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
    """Logits (E, n, C) of all exits -> (n, C), what is answered for images that no early exit let go.

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
    if name == "last":
        return predictions
    answers = fallback_logits(predictions.logits, name)
    return Predictions(torch.cat([predictions.logits[:-1], answers[None]]), predictions.labels, predictions.costs)


@dataclass(frozen=True)
class Decisions:
    """Where every image of a split left, and what came of it.

    Attributes:
        exit_index: (N,) int64.
        predicted: (N,) int64, the class that exit named, or the fallback for images that no early exit let go.
        labels: (N,) int64.
        costs: (E,) float64 up to each exit, as the predictions have them.
    """

    exit_index: Tensor
    predicted: Tensor
    labels: Tensor
    costs: Tensor

    def __repr__(self) -> str:
        rates = " / ".join(f"{rate:.1%}" for rate in self.exit_rates.tolist())
        return (
            f"{type(self).__name__}({len(self.labels):,} images: accuracy {self.accuracy:.2%} for "
            f"{self.relative_cost:.1%} of the cost, exit rates {rates})"
        )

    @cached_property
    def accuracy(self) -> float:
        """Share of the images whose class was named."""
        return float((self.predicted == self.labels).double().mean())

    @cached_property
    def mean_cost(self) -> float:
        """Mean cost of an image, in the unit of `costs`."""
        return float(self.costs[self.exit_index].mean())

    @property
    def relative_cost(self) -> float:
        """`mean_cost` as a share of the whole network's."""
        return self.mean_cost / float(self.costs[-1])

    @property
    def exit_rates(self) -> Tensor:
        """(E,) float64, share of the images that left at each exit."""
        return _exit_rates(self.exit_index, len(self.costs))

    def exit_rates_by_class(self, classes: Sequence[str]) -> dict[str, Tensor]:
        """`exit_rates` of "all" images, then of those of each class: what `eeutils.plots.plot_exit_rates` takes."""
        left = {name: self.exit_index[self.labels == label] for label, name in enumerate(classes)}
        return {"all": self.exit_rates} | {name: _exit_rates(index, len(self.costs)) for name, index in left.items()}


def decide(predictions: Predictions, policy: Policy, fallback: str = "last") -> Decisions:
    """Let `policy` decide for every image of the table.

    Args:
        predictions: the table.
        policy: who leaves where.
        fallback: whose answer counts for an image that no early exit let go: see
            `eeutils.analysis.decisions.fallback_logits`.

    Raises:
        TypeError: if `predictions` are no table, or `policy` is no policy.
        ValueError: if the policy is for another number of exits, or does not answer one bool per image, or the fallback
            is unknown.
    """
    check_predictions(predictions)
    index = exit_indices(predictions.logits, policy)
    predicted = with_fallback(predictions, fallback).predicted.gather(0, index[None])[0]
    return Decisions(index, predicted, predictions.labels, predictions.costs)


def exit_indices(logits: Tensor, policy: Policy) -> Tensor:
    """Logits (E, N, C) -> the exit at which each image leaves, (N,) int64; the last takes whoever is left.

    Raises:
        TypeError, ValueError: see `decide`.
    """
    num_exits = len(logits)
    check_policy(policy, num_exits)
    left_at = torch.full(logits.shape[1:2], num_exits - 1, device=logits.device)
    for index in reversed(range(num_exits - 1)):  # from deep to shallow: the first exit to let an image go wins
        left_at[leaving(policy, logits[: index + 1])] = index
    return left_at


def _exit_rates(exit_index: Tensor, num_exits: int) -> Tensor:
    return torch.bincount(exit_index, minlength=num_exits).double() / len(exit_index)
