"""Decisions: the exit at which a policy lets each image leave, and the accuracy and cost that follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eeutils.analysis.policies import Policy, check_policy, confidence, leaving, switched_off
from eeutils.analysis.predictions import Predictions, check_predictions
from eeutils.fields import check_choice


@dataclass(frozen=True)
class Decisions:
    """Exit and prediction of every image of a split."""

    exit_index: Tensor  # (N,) int64
    predicted: Tensor  # (N,) int64, the class predicted there, or by the fallback for images that stay to the end
    labels: Tensor  # (N,) int64
    costs: Tensor  # (E,) float64 of one image up to each exit
    full_cost: float | None = None  # of the whole network, if other than that of the last exit

    def __repr__(self) -> str:
        rates = " / ".join(f"{rate:.1%}" for rate in self.exit_rates.tolist())
        return (
            f"{type(self).__name__}({len(self.labels):,} images: accuracy {self.accuracy:.2%} for "
            f"{self.relative_cost:.1%} of the cost, exit rates {rates})"
        )

    @cached_property
    def accuracy(self) -> float:
        """Share of the images classified correctly."""
        return float((self.predicted == self.labels).double().mean())

    @cached_property
    def mean_cost(self) -> float:
        """Mean cost of an image, in the unit of `costs`."""
        return float(self.costs[self.exit_index].mean())

    @property
    def relative_cost(self) -> float:
        """`mean_cost` as a share of the whole network's."""
        return self.mean_cost / (self.full_cost or float(self.costs[-1]))

    @property
    def exit_rates(self) -> Tensor:
        """(E,) float64, share of the images that left at each exit."""
        return _exit_rates(self.exit_index, len(self.costs))

    def exit_rates_by_class(self, classes: Sequence[str]) -> dict[str, Tensor]:
        """Return `exit_rates` of "all" images, then of each class, as `eeutils.plots.plot_exit_rates` takes them."""
        left = {name: self.exit_index[self.labels == label] for label, name in enumerate(classes)}
        return {"all": self.exit_rates} | {name: _exit_rates(index, len(self.costs)) for name, index in left.items()}


def decide(predictions: Predictions, policy: Policy, fallback: str = "last") -> Decisions:
    """Let `policy` decide for every image of the table; for `fallback` see `fallback_logits`."""
    check_predictions(predictions)
    check_policy(policy, predictions.num_exits)
    index = _exit_indices(predictions.logits, policy)
    predicted = with_fallback(predictions, fallback).predicted.gather(0, index[None])[0]
    off = switched_off(policy, predictions.num_exits) if fallback == "last" else []
    costs, full_cost = predictions.costs_without(off), float(predictions.costs[-1])
    return Decisions(index, predicted, predictions.labels, costs, full_cost)


def _exit_indices(logits: Tensor, policy: Policy) -> Tensor:
    """Logits (E, N, C) -> (N,) int64, the exit at which each image leaves, the last if at no early one."""
    last = len(logits) - 1
    left_at = torch.full(logits.shape[1:2], last, device=logits.device)
    for index in reversed(range(last)):  # the shallowest exit overwrites the others
        left_at[leaving(policy, logits[: index + 1].clone())] = index  # a policy may write into what it is given
    return left_at


def unconfident_counts(predictions: Predictions, policy: Policy) -> Tensor:
    """Count the images that leave at no early exit, by the exit that is most confident about each, (E,) int64.

    Shallow-Deep Networks (arXiv 1810.07052) count the same, except that their last exit has a threshold, too.
    """
    staying = decide(predictions, policy).exit_index == predictions.num_exits - 1
    return predictions.confidence[:, staying].argmax(0).bincount(minlength=predictions.num_exits)


def check_fallback(name: str) -> None:
    """Raise ValueError with the choices unless `name` is a fallback."""
    check_choice("fallback", name, ("last", "most_confident"))


def fallback_logits(logits: Tensor, name: str) -> Tensor:
    """Logits (E, n, C) of all exits -> (n, C), the answers for images that leave at no early exit.

    "last" takes the last exit's answer, "most_confident" that of the exit with the largest softmax probability (as in
    Shallow-Deep Networks). Either way the whole network has run.
    """
    check_fallback(name)
    if name == "last":
        return logits[-1]
    most = confidence(logits).argmax(0)  # the first of equals
    return logits[most, torch.arange(len(most), device=logits.device)]


def with_fallback(predictions: Predictions, name: str) -> Predictions:
    """Return the table with the fallback's answers at the last exit, for sweeps and choices of thresholds."""
    if name == "last":
        return predictions
    answers = fallback_logits(predictions.logits, name)
    return replace(predictions, logits=torch.cat([predictions.logits[:-1], answers[None]]))


def _exit_rates(exit_index: Tensor, num_exits: int) -> Tensor:
    return exit_index.bincount(minlength=num_exits).double() / len(exit_index)
