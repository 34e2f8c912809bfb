"""Thresholds: what each costs and buys, and which to take. Choose on validation, report on test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import Policy, ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions, check_predictions


@dataclass(frozen=True)
class Curve:
    """Accuracy against cost as one threshold for all early exits moves.

    Attributes:
        thresholds: (T,) float64.
        accuracy: (T,) float64, 0 to 1.
        cost: (T,) float64, mean cost of an image, in the unit of the predictions' costs.
        full_cost: of the whole network.
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
    predictions: Predictions, thresholds: Tensor | Sequence[float] | None = None, score: str = "confidence"
) -> Curve:
    """Accuracy and mean cost for many thresholds at once.

    Args:
        predictions: the table, N images.
        thresholds: (T,) numbers in [0, 1], or infinity for leaving nobody, in any order, which the curve keeps; by
            default at evenly spaced ranks of the scores, rising.
        score: see `eeutils.analysis.policies.score_of`.

    Raises:
        ValueError: if a threshold is none of these, or there is none.
    """
    scores = score_of(predictions.logits[:-1], score)
    thresholds = _grid(scores) if thresholds is None else checked_thresholds(thresholds)
    accuracy, cost = _sweep_shared(predictions, scores, thresholds)
    return Curve(thresholds, accuracy, cost, float(predictions.costs[-1]), score)


def exit_rates_at(predictions: Predictions, thresholds: Tensor | Sequence[float], score: str = "confidence") -> Tensor:
    """(T, E) float64, share of the images that leave at each exit, with each threshold (T,) at all early exits.

    Raises:
        ValueError: as in `accuracy_cost_curve`.
    """
    everybody = torch.ones_like(predictions.correct)
    leaving = count_leaving(everybody, score_of(predictions.logits[:-1], score), checked_thresholds(thresholds))
    return leaving / len(predictions.labels)


@dataclass(frozen=True)
class Choice:
    """A rule chosen on one split, with what it came to *there*; see `decide` for other splits.

    Attributes:
        policy: the rule to use; a threshold of infinity marks an exit that is better never used.
        accuracy: on the split it was chosen on.
        relative_cost: likewise, as a share of the whole network's.
    """

    policy: Policy
    accuracy: float
    relative_cost: float

    @staticmethod
    def of(policy: Policy, validation: Predictions) -> "Choice":
        """`policy` with what it comes to on `validation`."""
        decisions = decide(validation, policy)
        return Choice(policy, decisions.accuracy, decisions.relative_cost)


def choose_for_accuracy(validation: Predictions, max_drop: float, score: str = "confidence") -> Choice:
    """The cheapest thresholds that lose at most `max_drop` (0.005 is half a point) against the last exit.

    There always are some: at worst those that let nobody leave early. For how they are found see `choose_for_budget`.
    The drop is counted on the images searched on, which flatters the choice the more, the more exits there are: with
    six early ones twice as much was lost on new images. `choose_one_threshold` has next to nothing to overfit with.

    Raises:
        TypeError: if `validation` is no table of predictions.
        ValueError: if `max_drop` is not in [0, 1].
    """
    check_predictions(validation)
    return _choose(validation, score, _allowing(validation, max_drop))


def choose_one_threshold(validation: Predictions, max_drop: float, score: str = "confidence") -> Choice:
    """The cheapest threshold, one for all early exits, that loses at most `max_drop` against the last exit.

    New images lose a little more than that on average (`tools/benchmarks`); 5,000 validation images pin a
    loss down to some 0.4 points up or down. For a promise see `eeutils.analysis.risk.choose_with_guarantee`.

    Raises:
        TypeError: if `validation` is no table of predictions.
        ValueError: if `max_drop` is not in [0, 1].
    """
    check_predictions(validation)
    scores = score_of(validation.logits[:-1], score)
    candidates = _candidates(scores)
    best = _allowing(validation, max_drop)(*_sweep_shared(validation, scores, candidates))
    return Choice.of(ThresholdPolicy(float(candidates[best]), score), validation)


def choose_for_budget(validation: Predictions, budget: float, score: str = "confidence") -> Choice:
    """The most accurate thresholds whose mean cost is at most `budget`, a share of the whole network's cost.

    The best threshold shared by all exits comes first; then one exit's threshold after the other is moved to where it
    serves the goal best, until none can be. That is never worse than a shared threshold. With one early exit it is the
    very best there is on up to 998 images, whose scores are all tried; of more, those at 998 evenly spaced ranks.
    The accuracy is counted on the images searched on, which flatters it: `tools/benchmarks` measures by
    how much, and how little a large budget then brings on new images.

    Raises:
        TypeError: if `validation` is no table of predictions.
        ValueError: if `budget` is not in (0, 1], or too small even for always leaving at the first exit; it says what
            that costs.
    """
    check_predictions(validation)
    if not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the network's cost in (0, 1], got {budget}")
    cheapest = float(validation.relative_costs[0])
    if budget < cheapest:
        raise ValueError(
            f"a budget of {budget:.1%} cannot be met: the first exit alone costs {cheapest:.1%} of the network. "
            "Ask for more, or place an exit earlier"
        )
    return _choose(validation, score, _most_accurate_within(budget * float(validation.costs[-1])))


_ROUNDING, _SCORE_ROUNDING = 1e-9, 1e-6  # of costs in float64, and of scores in float32
_GRID = 1000
_PASSES = 4


_Pick = Callable[[Tensor, Tensor], int]
"""Of thresholds with accuracies (T,) and costs (T,) the best, by its position."""


def _cheapest_above(floor: float) -> _Pick:
    return lambda accuracy, cost: _best(accuracy >= floor - _ROUNDING, -cost, accuracy)


def _most_accurate_within(ceiling: float) -> _Pick:
    return lambda accuracy, cost: _best(cost <= ceiling * (1 + _ROUNDING), accuracy, -cost)


def _best(allowed: Tensor, first: Tensor, second: Tensor) -> int:
    """Of those allowed the one largest at `first`; of those equally large there, the one largest at `second`."""
    first = torch.where(allowed, first, -math.inf)
    return int(torch.where(first == first.max(), second, -math.inf).argmax())


def _allowing(validation: Predictions, max_drop: float) -> _Pick:
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a share of the images in [0, 1], got {max_drop}")
    return _cheapest_above(float(validation.accuracy[-1]) - max_drop)


def _choose(validation: Predictions, score: str, pick: _Pick) -> Choice:
    scores = score_of(validation.logits[:-1], score)
    candidates = _candidates(scores)
    shared = pick(*_sweep_shared(validation, scores, candidates))
    chosen = [shared] * len(scores)  # positions in `candidates`
    for _ in range(_PASSES):
        before = list(chosen)
        for index, now in enumerate(before):
            accuracy, cost = _sweep_one(validation, scores, candidates[chosen], index, candidates)
            best = pick(accuracy, cost)
            if (accuracy[best], cost[best]) != (accuracy[now], cost[now]):
                chosen[index] = best
        if chosen == before:
            break
    return Choice.of(ThresholdPolicy(tuple(candidates[chosen].tolist()), score), validation)


def _candidates(scores: Tensor) -> Tensor:
    """(T,) float64, thresholds to search among; infinity is for exits that are better never used."""
    return torch.cat([_grid(scores), torch.tensor([math.inf], dtype=torch.float64)])


def _grid(scores: Tensor) -> Tensor:
    """(T,) float64, rising, at most `_GRID` thresholds at evenly spaced ranks of `scores`, 0 and 1 among them.

    Scores crowd near 1; a grid by rank has its points where a step changes who leaves.
    """
    ordered = scores.flatten().sort().values
    _check_range(ordered)
    ranks = torch.linspace(0, max(len(ordered) - 1, 0), _GRID - 2, dtype=torch.float64).long()
    between = ordered[ranks] if len(ordered) else ordered
    return torch.cat([ordered.new_tensor([0.0, 1.0]), between]).clamp(0, 1).unique().double()


def _check_range(ordered: Tensor) -> None:
    """See that scores, (S,) rising, with NaN at the end, are in [0, 1] but for rounding."""
    if len(ordered) and not (ordered[0] >= -_SCORE_ROUNDING and ordered[-1] <= 1 + _SCORE_ROUNDING):
        low, high = float(ordered[0]), float(ordered[-1])
        raise ValueError(
            f"scores must be in [0, 1], got {low:.4g} to {high:.4g}; squash yours, as by sigmoid() of a tenth of it"
        )


def checked_thresholds(thresholds: Tensor | Sequence[float]) -> Tensor:
    """`thresholds` as (T,) float64.

    Raises:
        ValueError: if one is neither in [0, 1] nor infinity, or there is none.
    """
    thresholds = torch.as_tensor(thresholds, dtype=torch.float64)
    usable = (thresholds >= 0) & (thresholds <= 1) | (thresholds == math.inf)
    if not usable.all() or not len(thresholds):
        raise ValueError(f"thresholds must be one or more numbers in [0, 1], got {thresholds[~usable].tolist()}")
    return thresholds


def count_leaving(chosen: Tensor, scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many of the images `chosen` leave at each exit, with each of `thresholds` at all early exits.

    An image leaves at exit e if its score there reaches the threshold and no earlier score did: if the threshold lies
    above the best earlier score and not above the best so far. So each exit contributes two sorted lists, and all
    thresholds are looked up in them together.

    Args:
        chosen: (E, N) bool, the images to count at each exit.
        scores: (E - 1, N), of the early exits.
        thresholds: (T,) float64.

    Returns:
        (T, E) float64.
    """
    ends = scores.new_full((1, scores.shape[1]), math.inf)  # before the first exit nobody is out, after the last all
    best = torch.cat([-ends, scores.cummax(0).values, ends])
    counts = [
        _reaching(now[images], thresholds) - _reaching(before[images], thresholds)
        for before, now, images in zip(best[:-1], best[1:], chosen, strict=True)
    ]
    return torch.stack(counts, dim=1)


def _reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) float64, how many of `scores` are at least each threshold, in the scores' precision as a policy does."""
    return len(scores) - torch.searchsorted(scores.sort().values, thresholds.to(scores.dtype)).double()


def _sweep_shared(predictions: Predictions, scores: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy (T,) and mean cost (T,) with each of `thresholds` at all early exits, given their scores (E-1, N)."""
    correct = predictions.correct
    right, leaving = (count_leaving(chosen, scores, thresholds) for chosen in (correct, torch.ones_like(correct)))
    return right.sum(1) / len(predictions.labels), (leaving * predictions.costs).sum(1) / len(predictions.labels)


def _sweep_one(
    predictions: Predictions, scores: Tensor, thresholds: Tensor, moving: int, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Accuracy (T,) and mean cost (T,) with the threshold of exit `moving` at each of `candidates`, others as given."""
    others = thresholds.to(scores.dtype).clone()
    others[moving] = math.inf
    # Where an image goes that does not leave here: the first other exit that lets it go, or the last.
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
    costs = predictions.costs[:, None].expand(-1, num_images)
    return total(predictions.correct.double()) / num_images, total(costs) / num_images
