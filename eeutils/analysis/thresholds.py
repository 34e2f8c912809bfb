"""Thresholds: accuracy and cost of each, and the choice among them. Choose on validation, report on test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import Policy, ThresholdPolicy, looks_back, score_of
from eeutils.analysis.predictions import Predictions, check_predictions
from eeutils.fields import check_range


@dataclass(frozen=True)
class Curve:
    """Accuracy against cost as one threshold for all early exits moves."""

    thresholds: Tensor  # (T,) float64
    accuracy: Tensor  # (T,) float64, 0 to 1
    cost: Tensor  # (T,) float64, mean cost of an image, in the unit of the predictions' costs
    full_cost: float  # of the whole network
    score: str  # that the thresholds apply to

    @property
    def relative_cost(self) -> Tensor:
        """(T,) `cost` as a share of the whole network's."""
        return self.cost / self.full_cost


def accuracy_cost_curve(
    predictions: Predictions, thresholds: Tensor | Sequence[float] | None = None, score: str = "confidence"
) -> Curve:
    """Compute accuracy and mean cost for many thresholds at once.

    Args:
        thresholds: (T,) numbers in [0, 1], or infinity, in any order, which the curve keeps; by default at evenly
            spaced ranks of the scores, rising.
        score: see `eeutils.analysis.policies.score_of`.
    """
    predictions, scores = _billed(predictions, score), score_of(predictions.logits[:-1], score)
    thresholds = _grid(scores) if thresholds is None else checked_thresholds(thresholds)
    accuracy, cost = _sweep_shared(predictions, scores, thresholds)
    return Curve(thresholds, accuracy, cost, float(predictions.costs[-1]), score)


def exit_rates_at(predictions: Predictions, thresholds: Tensor | Sequence[float], score: str = "confidence") -> Tensor:
    """(T, E) float64, share of the images that leave at each exit, with each threshold (T,) at all early exits."""
    every_image = torch.ones_like(predictions.correct)
    leaving = count_leaving(every_image, score_of(predictions.logits[:-1], score), checked_thresholds(thresholds))
    return leaving / len(predictions.labels)


@dataclass(frozen=True)
class Choice:
    """A policy and its results on the split it was chosen on; see `decide` for other splits."""

    policy: Policy  # a threshold of infinity switches an exit off
    accuracy: float
    relative_cost: float  # as a share of the whole network's

    @staticmethod
    def of(policy: Policy, validation: Predictions) -> "Choice":
        """Return `policy` with its results on `validation`."""
        decisions = decide(validation, policy)
        return Choice(policy, decisions.accuracy, decisions.relative_cost)


def choose_thresholds(
    validation: Predictions,
    *,
    max_drop: float | None = None,
    budget: float | None = None,
    per_exit: bool | Literal["geometric"] | None = None,
    score: str = "confidence",
) -> Choice:
    """Return the cheapest thresholds that keep an accuracy, or the most accurate ones that keep to a budget.

    One threshold for all early exits hardly overfits: on new images it loses a little more than `max_drop`, and 5,000
    validation images measure a loss to about 0.4 points. One threshold per exit fits the validation images better,
    never worse, and overfits more with every exit. Its search starts at the best shared threshold and moves one exit's
    threshold at a time while that improves the goal. With one early exit and up to 998 images it is exact; with more
    images it tries thresholds at 998 evenly spaced ranks of the scores.

    "geometric" has one parameter too: each exit lets go the same multiple of the images that the exit before it did
    (MSDNet, arXiv 1703.09844). With two early exits it loses less on new images than a free threshold each.

    For a promise about new images see `eeutils.analysis.risk.choose_with_guarantee`.

    Args:
        max_drop: accuracy that may be lost against the last exit, in [0, 1]; 0.005 is half a point.
        budget: mean cost of an image that may be spent, as a share of the whole network's, in (0, 1].
        per_exit: one threshold for each early exit, free or "geometric"; by default free for a `budget`, else shared.
        score: see `eeutils.analysis.policies.score_of`.

    Raises:
        ValueError: unless exactly one of `max_drop` and `budget` is given, or if the budget is smaller than the first
            exit's cost.
    """
    check_predictions(validation)
    check_one_goal(max_drop=max_drop, budget=budget)
    pick = _spending(validation, budget) if max_drop is None else _losing(validation, max_drop)
    table, scores = _billed(validation, score), score_of(validation.logits[:-1], score)
    if per_exit == "geometric":
        spaced = torch.logspace(-_RATIO_EXPONENT, _RATIO_EXPONENT, _RATIOS, dtype=torch.float64).tolist()
        thresholds = [_thresholds_for(scores, ratio) for ratio in (0.0, *spaced, math.inf)]
        choices = [Choice.of(ThresholdPolicy(each, score), validation) for each in thresholds]
        outcomes = [(each.accuracy, each.relative_cost) for each in choices]
        accuracy, relative_cost = torch.tensor(outcomes, dtype=torch.float64).T
        return choices[pick(accuracy, relative_cost * float(validation.costs[-1]))]
    candidates = torch.cat([_grid(scores), torch.tensor([math.inf], dtype=torch.float64)])  # infinity: an exit is off
    shared = pick(*_sweep_shared(table, scores, candidates))
    if per_exit or (per_exit is None and budget is not None):
        thresholds = candidates[_refined(table, scores, candidates, shared, pick)].tolist()
    else:
        thresholds = float(candidates[shared])
    return Choice.of(ThresholdPolicy(thresholds, score), validation)


_ROUNDING, _SCORE_ROUNDING = 1e-9, 1e-6  # of costs in float64, and of scores in float32
_GRID = 1000
_PASSES = 4
_RATIOS, _RATIO_EXPONENT = 101, 1.7  # from 0.02 to 50


_Pick = Callable[[Tensor, Tensor], int]
"""Accuracies (T,) and costs (T,) -> position of the best threshold."""


def _billed(predictions: Predictions, score: str) -> Predictions:
    """`predictions` with head costs only if exits that are switched off need not run."""
    if predictions.head_costs is None or not looks_back(score):
        return predictions
    return replace(predictions, head_costs=None)


def _losing(validation: Predictions, max_drop: float) -> _Pick:
    """Pick the cheapest that loses at most `max_drop` against the last exit."""
    check_range("max_drop", max_drop, 0, 1)
    floor = float(validation.accuracy[-1]) - max_drop
    return lambda accuracy, cost: _best(accuracy >= floor - _ROUNDING, -cost, accuracy)


def _spending(validation: Predictions, budget: float) -> _Pick:
    """Pick the most accurate that spends at most `budget` of the whole network's cost."""
    check_range("budget", budget, float(validation.relative_costs[0]), 1)
    ceiling = budget * float(validation.costs[-1]) * (1 + _ROUNDING)
    return lambda accuracy, cost: _best(cost <= ceiling, accuracy, -cost)


def _best(allowed: Tensor, first: Tensor, second: Tensor) -> int:
    """Position of the allowed entry that is largest at `first`, then at `second`."""
    first = torch.where(allowed, first, -math.inf)
    return int(torch.where(first == first.max(), second, -math.inf).argmax())


def _refined(validation: Predictions, scores: Tensor, candidates: Tensor, shared: int, pick: _Pick) -> list[int]:
    """Move one exit's threshold at a time from `shared`; positions in `candidates`, one per early exit."""
    chosen = [shared] * len(scores)
    for _ in range(_PASSES):
        before = list(chosen)
        for index, now in enumerate(before):
            accuracy, cost = _sweep_one(validation, scores, candidates[chosen], index, candidates)
            best = pick(accuracy, cost)
            if (accuracy[best], cost[best]) != (accuracy[now], cost[now]):
                chosen[index] = best
        if chosen == before:
            break
    return chosen


def _thresholds_for(scores: Tensor, ratio: float) -> list[float]:
    """One threshold per early exit, so that each exit lets go `ratio` times as many images as the one before."""
    exponents = torch.arange(len(scores) + 1, dtype=torch.float64)
    weights = ratio**exponents if ratio <= 1 else ratio ** (exponents - len(scores))
    wanted = (weights / weights.sum() * scores.shape[1]).round().long().tolist()
    thresholds, stays = [], torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    for here, count in zip(scores, wanted, strict=False):
        ordered = here[stays].sort(descending=True).values[:count]
        thresholds.append(min(max(float(ordered[-1]), 0.0), 1.0) if len(ordered) else math.inf)
        stays &= here < thresholds[-1]
    return thresholds


def _grid(scores: Tensor) -> Tensor:
    """(T,) float64, rising, at most `_GRID` thresholds at evenly spaced ranks of `scores`, with 0 and 1.

    Scores crowd near 1; a grid by rank has its points where a step changes who leaves.
    """
    ordered = scores.flatten().sort().values  # NaN comes last
    if len(ordered) and not (ordered[0] >= -_SCORE_ROUNDING and ordered[-1] <= 1 + _SCORE_ROUNDING):
        low, high = float(ordered[0]), float(ordered[-1])
        raise ValueError(f"scores must be in [0, 1], got {low:.4g} to {high:.4g}; squash yours, say by sigmoid()")
    ranks = torch.linspace(0, max(len(ordered) - 1, 0), _GRID - 2, dtype=torch.float64).long()
    between = ordered[ranks] if len(ordered) else ordered
    return torch.cat([ordered.new_tensor([0.0, 1.0]), between]).clamp(0, 1).unique().double()


def check_one_goal(**goals: float | None) -> None:
    """Raise ValueError unless exactly one of the keyword arguments is given."""
    if sum(goal is not None for goal in goals.values()) != 1:
        raise ValueError(f"exactly one of {' and '.join(goals)} must be given, got {goals}")


def checked_thresholds(thresholds: Tensor | Sequence[float]) -> Tensor:
    """Return `thresholds` as (T,) float64; raise ValueError unless each is in [0, 1] or infinite."""
    thresholds = torch.as_tensor(thresholds, dtype=torch.float64)
    usable = (thresholds >= 0) & (thresholds <= 1) | (thresholds == math.inf)
    if not usable.all() or not len(thresholds):
        raise ValueError(f"thresholds must be one or more numbers in [0, 1], got {thresholds[~usable].tolist()}")
    return thresholds


def count_leaving(chosen: Tensor, scores: Tensor, thresholds: Tensor) -> Tensor:
    """Count the images `chosen` (E, N) that leave at each exit with each threshold (T,) at all early exits: (T, E).

    An image leaves at exit e if the threshold is above its best earlier score and at most its best score so far, given
    those of the early exits (E - 1, N). Each exit contributes two sorted lists, in which all thresholds are looked up.
    """
    ends = scores.new_full((1, scores.shape[1]), math.inf)  # no image is out before the first exit, all after the last
    best = torch.cat([-ends, scores.cummax(0).values, ends])
    counts = [
        _reaching(now[images], thresholds) - _reaching(before[images], thresholds)
        for before, now, images in zip(best[:-1], best[1:], chosen, strict=True)
    ]
    return torch.stack(counts, dim=1)


def _reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) float64, number of `scores` that reach each threshold, compared in the scores' precision as policies do."""
    return len(scores) - torch.searchsorted(scores.sort().values, thresholds.to(scores.dtype)).double()


def _sweep_shared(predictions: Predictions, scores: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy (T,) and mean cost (T,) with each of `thresholds` at all early exits, given their scores (E-1, N)."""
    correct = predictions.correct
    right, leaving = (count_leaving(chosen, scores, thresholds) for chosen in (correct, torch.ones_like(correct)))
    every_early_exit = range(predictions.num_exits - 1)
    off = (thresholds == math.inf)[:, None]
    costs = torch.where(off, predictions.costs_without(every_early_exit), predictions.costs)
    return right.sum(1) / len(predictions.labels), (leaving * costs).sum(1) / len(predictions.labels)


def _sweep_one(
    predictions: Predictions, scores: Tensor, thresholds: Tensor, moving: int, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Accuracy (T,) and mean cost (T,) with the threshold of exit `moving` at each of `candidates`, others as given."""
    others = thresholds.to(scores.dtype).clone()
    others[moving] = math.inf
    # The exit of an image that does not leave here: the first other exit that lets it go, or the last.
    reached = torch.cat([scores >= others[:, None], torch.ones_like(predictions.correct[:1])])
    otherwise = reached.int().argmax(0)
    arrives = otherwise > moving
    here, order = scores[moving, arrives].sort()
    first_to_leave = torch.searchsorted(here, candidates.to(scores.dtype))

    def total(of_exits: Tensor) -> Tensor:
        """Sum over the images of `of_exits` (E, N), each at the exit where it leaves, for each threshold (T,)."""
        if_staying = of_exits.gather(0, otherwise[None])[0]
        gain = (of_exits[moving] - if_staying)[arrives][order]
        from_here_up = torch.cat([gain.flip(0).cumsum(0).flip(0), gain.new_zeros(1)])
        return if_staying.sum() + from_here_up[first_to_leave]

    num_images = len(predictions.labels)
    off = {index for index, threshold in enumerate(thresholds.tolist()) if threshold == math.inf} - {moving}
    cost = total(predictions.costs_without(off)[:, None].expand(-1, num_images))
    # At infinity nobody leaves here, and the head does not run.
    without = predictions.costs_without(off | {moving})[otherwise].sum()
    cost = torch.where(candidates == math.inf, without, cost)
    return total(predictions.correct.double()) / num_images, cost / num_images
