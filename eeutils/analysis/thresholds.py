"""Thresholds: what each costs and buys, and which to take. Choose on validation, report on test."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy, decide, score
from eeutils.analysis.predictions import Predictions


@dataclass(frozen=True)
class Curve:
    """Accuracy against cost as one threshold for all early exits moves.

    Attributes:
        thresholds: (T,) float64, increasing.
        accuracy: (T,) float64, 0 to 1.
        cost: (T,) float64, mean multiply-adds an image.
        full_cost: multiply-adds of the whole network.
        score: what the thresholds are on.
    """

    thresholds: Tensor
    accuracy: Tensor
    cost: Tensor
    full_cost: float
    score: str

    @property
    def relative_cost(self) -> Tensor:
        """(T,) `cost` as a share of the whole network's."""
        return self.cost / self.full_cost


def accuracy_cost_curve(
    predictions: Predictions, thresholds: Tensor | Sequence[float] | None = None, score_name: str = "confidence"
) -> Curve:
    """Accuracy and mean cost for many thresholds at once.

    An image leaves at exit e if its score there reaches the threshold and no earlier score did: if the threshold lies
    above the best earlier score and not above the best so far. So each exit contributes two sorted lists, and all
    thresholds are looked up in them together.

    Args:
        predictions: the table, N images.
        thresholds: (T,) numbers in [0, 1]; by default `threshold_grid(predictions)`.
        score_name: see `eeutils.analysis.policies.score`.

    Raises:
        ValueError: if a threshold is outside [0, 1].
    """
    if thresholds is None:
        thresholds = threshold_grid(predictions, score_name=score_name)
    thresholds = torch.as_tensor(thresholds, dtype=torch.float64).sort().values
    if bool((thresholds < 0).any() | (thresholds > 1).any()):
        raise ValueError(f"thresholds must be in [0, 1], got {thresholds.min():.4g} to {thresholds.max():.4g}")
    num_images = len(predictions.labels)
    best = score(predictions.logits[:-1], score_name).cummax(0).values  # (E-1, N)
    ends = best.new_full((1, num_images), torch.inf)
    best = torch.cat([-ends, best, ends])  # nobody leaves before the first exit, everybody by the last
    accuracy, cost = torch.zeros_like(thresholds), torch.zeros_like(thresholds)
    for index, correct in enumerate(predictions.correct):
        before, now = best[index], best[index + 1]
        leaving = _reaching(now, thresholds) - _reaching(before, thresholds)
        accuracy += (_reaching(now[correct], thresholds) - _reaching(before[correct], thresholds)) / num_images
        cost += leaving * predictions.costs[index] / num_images
    return Curve(thresholds, accuracy, cost, float(predictions.costs[-1]), score_name)


def threshold_grid(predictions: Predictions, count: int = 1000, score_name: str = "confidence") -> Tensor:
    """(T,) at most `count` thresholds at evenly spaced ranks of the early exits' scores, and 0 and 1.

    Scores crowd near 1; a grid by rank has its points where a step changes who leaves.
    """
    scores = score(predictions.logits[:-1], score_name).flatten().sort().values
    ranks = torch.linspace(0, max(len(scores) - 1, 0), max(count - 2, 1)).long()
    middle = scores[ranks] if len(scores) else scores
    return torch.cat([scores.new_tensor([0.0]), middle, scores.new_tensor([1.0])]).clamp(0, 1).unique().double()


@dataclass(frozen=True)
class Choice:
    """Thresholds chosen on one split, with what they came to *there*; see `decide` for other splits.

    Attributes:
        policy: the rule to use.
        accuracy: on the split it was chosen on.
        relative_cost: likewise, as a share of the whole network's.
    """

    policy: ThresholdPolicy
    accuracy: float
    relative_cost: float


def choose_for_accuracy(validation: Predictions, max_drop: float = 0.0, score_name: str = "confidence") -> Choice:
    """The cheapest thresholds that lose at most `max_drop` (0.005 is half a point) against the last exit.

    Raises:
        ValueError: if `max_drop` is not in [0, 1].
    """
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a share of the images in [0, 1], got {max_drop}")
    floor = float(validation.correct[-1].double().mean()) - max_drop
    curve = accuracy_cost_curve(validation, score_name=score_name)
    allowed = curve.accuracy >= floor - _ROUNDING
    if not allowed.any():  # even a threshold of 1 lets overconfident images go, at a loss
        return _choice(validation, ThresholdPolicy(_never(validation), score_name))
    cheapest = torch.where(allowed, curve.cost, torch.inf).argmin()
    start = _per_exit(validation, float(curve.thresholds[cheapest]))
    thresholds = _refine(validation, start, score_name, floor=floor, ceiling=torch.inf)
    return _choice(validation, ThresholdPolicy(thresholds, score_name))


def choose_for_budget(validation: Predictions, budget: float, score_name: str = "confidence") -> Choice:
    """The most accurate thresholds whose mean cost is at most `budget`, a share of the whole network's cost.

    Raises:
        ValueError: if not even leaving always at the first exit meets the budget; it says what that costs.
    """
    cheapest = float(validation.relative_costs[0])
    if budget < cheapest:
        raise ValueError(
            f"a budget of {budget:.1%} cannot be met: the first exit alone costs {cheapest:.1%} of the network. "
            "Ask for more, or place an exit earlier"
        )
    ceiling = budget * float(validation.costs[-1])
    curve = accuracy_cost_curve(validation, score_name=score_name)
    best = torch.where(curve.cost <= ceiling * (1 + _ROUNDING), curve.accuracy, -torch.inf).argmax()
    start = _per_exit(validation, float(curve.thresholds[best]))
    thresholds = _refine(validation, start, score_name, floor=-torch.inf, ceiling=ceiling)
    return _choice(validation, ThresholdPolicy(thresholds, score_name))


_ROUNDING = 1e-9
_PASSES = 4


def _reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) float64, how many of `scores` are at least each threshold; compared in the scores' precision, as a policy does."""
    return len(scores) - torch.searchsorted(scores.sort().values, thresholds.to(scores.dtype)).double()


def _per_exit(predictions: Predictions, threshold: float) -> tuple[float, ...]:
    return (threshold,) * (predictions.num_exits - 1)


def _never(predictions: Predictions) -> tuple[float, ...]:
    return _per_exit(predictions, 1.0)


def _choice(predictions: Predictions, policy: ThresholdPolicy) -> Choice:
    decisions = decide(predictions, policy)
    return Choice(policy, decisions.accuracy, decisions.relative_cost)


def _refine(
    predictions: Predictions, thresholds: tuple[float, ...], score_name: str, *, floor: float, ceiling: float
) -> tuple[float, ...]:
    """Move one exit's threshold at a time, the others held, for as long as that improves the goal.

    With a `floor` under the accuracy the goal is the lowest cost, with a `ceiling` on the cost the highest accuracy.
    """
    grid = threshold_grid(predictions, score_name=score_name)
    chosen = list(thresholds)
    for _ in range(_PASSES):
        before = list(chosen)
        for index in range(len(chosen)):
            accuracy, cost = _sweep_one(predictions, tuple(chosen), index, grid, score_name)
            allowed = (accuracy >= floor - _ROUNDING) & (cost <= ceiling * (1 + _ROUNDING))
            gain = -cost if floor > -torch.inf else accuracy
            candidates = torch.where(allowed, gain, -torch.inf)
            now = candidates[torch.searchsorted(grid, chosen[index]).clamp_max(len(grid) - 1)]
            if allowed.any() and candidates.max() > now:
                chosen[index] = float(grid[candidates.argmax()])
        if chosen == before:
            break
    return tuple(chosen)


def _sweep_one(
    predictions: Predictions, thresholds: tuple[float, ...], moving: int, grid: Tensor, score_name: str
) -> tuple[Tensor, Tensor]:
    """Accuracy (T,) and mean cost (T,) with the threshold of exit `moving` at each of `grid`, the others as given."""
    scores = score(predictions.logits[:-1], score_name)
    reached = scores >= scores.new_tensor(thresholds)[:, None]
    arrives = ~reached[:moving].any(0)
    # Where an image goes that does not leave here: the first later exit that lets it go, or the last.
    later = torch.cat([reached[moving + 1 :], torch.ones_like(reached[:1])]).int().argmax(0) + moving + 1
    earlier = reached[:moving].int().argmax(0) if moving else torch.zeros_like(later)
    otherwise = torch.where(arrives, later, earlier)

    def total(of_exits: Tensor) -> Tensor:
        """Sum over the images of `of_exits` (E, N), each at the exit where it leaves, for each threshold (T,)."""
        if_staying = of_exits.gather(0, otherwise[None])[0]
        gain = (of_exits[moving] - if_staying)[arrives]
        order = scores[moving, arrives].sort()
        from_here_up = torch.cat([gain[order.indices].flip(0).cumsum(0).flip(0), gain.new_zeros(1)])
        return if_staying.sum() + from_here_up[torch.searchsorted(order.values, grid.to(scores.dtype))]

    num_images = len(predictions.labels)
    costs = predictions.costs[:, None].expand(-1, num_images)
    return total(predictions.correct.double()) / num_images, total(costs) / num_images
