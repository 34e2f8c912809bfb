"""Thresholds that keep on new images what they promise: chosen on some of the validation images, judged on others.

The search for thresholds finds those that flatter the images searched on: allowed half a point there, networks with
six early exits lose a whole one elsewhere. Cross-fitting (cross-validation of the choice itself) measures what is lost
on images that had no part in it.
"""

import math
from collections.abc import Callable

import torch

from eeutils.analysis.policies import Decisions, ThresholdPolicy, decide
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Choice, choose_for_budget

# Each halves what is left of the range of budgets, so that they end within a hundredth of it.
_HALVINGS = 7
_ROUNDING = 1e-9


def choose_cross_fitted(
    validation: Predictions, max_drop: float = 0.0, score: str = "confidence", folds: int = 5
) -> Choice:
    """The cheapest thresholds that lose at most `max_drop` on images that they were not chosen on.

    Candidates are the thresholds that `choose_for_budget` finds for a budget, and the smallest budget is wanted. For
    each that is tried, they are chosen on all folds but one and judged on that one, in turn; the one taken is then
    spent on all images. Budgets are halved down to, so the result is the cheapest as far as a larger budget is better.

    On average over draws of the validation images the promise is kept; for one that holds with high probability see
    `eeutils.analysis.risk.choose_with_guarantee`.

    Args:
        validation: images like those to come, not used in training.
        max_drop: share of the images, 0.005 for half a point, to lose against the last exit.
        score: see `eeutils.analysis.policies.score`.
        folds: parts, 2 or more, and no more than images; drawn at random, the same ones in every call.

    Returns:
        the thresholds; accuracy and cost are those on the folds left out, which is what to expect of new images. If no
        budget keeps the promise, nobody leaves early.

    Raises:
        ValueError: if `max_drop` is not in [0, 1], or there are fewer than 2 folds or images.
    """
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a share of the images in [0, 1], got {max_drop}")
    parts = _folds(validation, folds)
    floor = float(validation.correct[-1].double().mean()) - max_drop

    def keeps_the_promise(budget: float) -> bool:
        return _judged_elsewhere(parts, budget, score).accuracy >= floor - _ROUNDING

    budget = _smallest(keeps_the_promise, float(validation.relative_costs[0]))
    if budget is None:
        return Choice(ThresholdPolicy(math.inf, score), floor + max_drop, 1.0)
    expected = _judged_elsewhere(parts, budget, score)
    return Choice(choose_for_budget(validation, budget, score).policy, expected.accuracy, expected.relative_cost)


def _smallest(enough: Callable[[float], bool], cheapest: float) -> float | None:
    """The smallest budget from `cheapest` to 1 that is enough, found by halving; None if not even 1 is."""
    if enough(cheapest):
        return cheapest
    if not enough(1.0):
        return None
    too_little, budget = cheapest, 1.0
    for _ in range(_HALVINGS):
        middle = (too_little + budget) / 2
        too_little, budget = (too_little, middle) if enough(middle) else (middle, budget)
    return budget


def _folds(validation: Predictions, folds: int) -> list[tuple[Predictions, Predictions]]:
    """For each fold the images outside and inside of it."""
    num_images = len(validation.labels)
    if min(folds, num_images) < 2:
        raise ValueError(f"cross-fitting needs 2 folds and 2 images at least, got {folds} and {num_images}")
    fold = torch.randperm(num_images, generator=torch.Generator().manual_seed(0)) % folds
    return [(validation.take(fold != index), validation.take(fold == index)) for index in range(min(folds, num_images))]


def _judged_elsewhere(parts: list[tuple[Predictions, Predictions]], budget: float, score: str) -> Decisions:
    """What becomes of every image, with thresholds chosen for `budget` without it."""
    judged = [decide(left_out, choose_for_budget(others, budget, score).policy) for others, left_out in parts]
    joined = (torch.cat([getattr(each, name) for each in judged]) for name in ("exit_index", "predicted", "labels"))
    return Decisions(*joined, judged[0].costs)
