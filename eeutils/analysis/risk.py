"""Thresholds with a guarantee: risk control for early exits (Jazbec et al., NeurIPS 2024, arXiv 2405.20915).

A threshold is accepted only if chance alone hardly explains how little early exits lose on validation data. Thresholds
are tested from 1 downwards until the first fails (fixed sequence testing), so each is tested at the full `delta`,
however many there are.
"""

import math
from collections.abc import Sequence

import torch
from scipy.stats import binom
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions, check_predictions
from eeutils.analysis.thresholds import Choice, check_one_goal, checked_thresholds, count_leaving
from eeutils.errors import require

# From 1 to 0 in steps that start at a millionth, since scores crowd near 1. Fixed before any data are seen: the
# guarantee is for thresholds that do not depend on the validation images.
GUARANTEE_THRESHOLDS = (1.0, *(1 - 10 ** (step / 100 - 6) for step in range(601)))


def choose_with_guarantee(
    validation: Predictions,
    max_risk: float | None = None,
    delta: float = 0.1,
    score: str = "confidence",
    thresholds: Sequence[float] | None = None,
    *,
    max_drop: float | None = None,
) -> Choice:
    """Return the lowest threshold certified to spoil at most `max_risk` of the images, or to cost at most `max_drop`.

    With probability 1 - `delta` over the draw of the validation images, for all images like them: early exits answer
    wrongly where the last exit is right for at most `max_risk` of the images, or the accuracy is at most `max_drop`
    below the last exit's. A drop also counts the images that early exits correct, so it promises the same accuracy at a
    lower cost.

    **If the first threshold fails, nothing is certified, and no image leaves early** (the threshold is infinite, the
    relative cost 1): with fewer than log(delta) / log(1 - max_risk) images even no loss at all proves nothing.

    `validation` images are like those to come, and used neither for training nor to choose the arguments here. A
    `max_risk` (the paper's epsilon) of 0.01 is one image in a hundred, a `max_drop` of 0.005 half a point. `thresholds`
    (T,) are fixed before seeing `validation`; by default 602 from 1 to 0.
    """
    check_predictions(validation)
    check_one_goal(max_risk=max_risk, max_drop=max_drop)
    require(0 < delta < 1, f"delta must be between 0 and 1, got {delta}")
    thresholds = checked_thresholds(GUARANTEE_THRESHOLDS if thresholds is None else thresholds)
    falling = thresholds.sort(descending=True).values
    scores = score_of(validation.logits[:-1], score)
    if max_drop is None:
        _, p_values = measure_risk(validation, scores, falling, max_risk)
    else:
        _, p_values = measure_gap(validation, scores, falling, max_drop, delta)
    certified = int((p_values <= delta).long().cumprod(0).sum())  # those before the first that fails
    return Choice.of(ThresholdPolicy(float(falling[certified - 1]) if certified else math.inf, score), validation)


def measure_risk(validation: Predictions, scores: Tensor, thresholds: Tensor, max_risk: float) -> tuple[Tensor, Tensor]:
    """Measure the share of images spoilt by early exits with scores (E - 1, N), with a binomial p-value; (T,) each.

    The loss of an image is max(0, 1[its early answer is wrong] - 1[the last exit's is wrong]). A sum of n such losses
    is binomial, so P(Binomial(n, max_risk) <= losses) is a p-value for the hypothesis that the risk exceeds `max_risk`.
    """
    require(0 < max_risk < 1, f"max_risk must be between 0 and 1, got {max_risk}")
    lost = validation.correct[-1] & ~validation.correct  # (E, N); none at the last exit
    losses, num_images = count_leaving(lost, scores, thresholds).sum(1), len(validation.labels)
    return losses / num_images, torch.from_numpy(binom.cdf(losses.numpy(), num_images, max_risk))


def measure_gap(
    validation: Predictions, scores: Tensor, thresholds: Tensor, max_drop: float, delta: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Measure the loss of accuracy, with a p-value by betting; arguments and result as for `measure_risk`.

    The loss of an image is 1[its early answer is wrong] - 1[the last exit's is wrong]: -1, 0 or 1. A bet that the mean
    loss is below `max_drop` is placed on every image in turn (Waudby-Smith & Ramdas, arXiv 2010.09686). If the mean is
    above, a capital of 1 grows beyond 1 / p with probability at most p (Markov's inequality). Their bound takes the
    largest capital on the way, which depends much more on the order of the images than the capital at the end.
    """
    require(0 <= max_drop < 1, f"max_drop must be between 0 and 1, got {max_drop}")
    order = torch.randperm(len(validation.labels), generator=torch.Generator().manual_seed(0))  # may be sorted by class
    scores, correct = scores[:, order], validation.correct[:, order].double()
    last = torch.ones_like(correct[-1:], dtype=torch.bool)
    gaps, p_values = [], []
    for threshold in thresholds.to(scores.dtype):
        exit_index = torch.cat([scores >= threshold, last]).int().argmax(0)
        gap = correct[-1] - correct.gather(0, exit_index[None])[0]
        gaps.append(gap.mean())
        p_values.append(_betting_p_value((gap + 1) / 2, (max_drop + 1) / 2, delta))
    return torch.stack(gaps), torch.stack(p_values)


def _betting_p_value(losses: Tensor, limit: float, delta: float) -> Tensor:
    """P-value for the hypothesis that the mean of `losses` (N,) in [0, 1], in random order, is above `limit`."""
    counts = torch.arange(2, len(losses) + 2, dtype=losses.dtype)
    means = (losses.cumsum(0) + 0.5) / counts
    variances = ((losses - means).square().cumsum(0) + 0.25) / counts
    before = torch.cat([variances.new_tensor([0.25]), variances[:-1]])  # a bet must not know the image it is placed on
    bets = (2 * math.log(1 / delta) / (len(losses) * before)).sqrt().clamp_max(1)
    return (-(-bets * (losses - limit)).log1p().sum()).exp().clamp_max(1)
