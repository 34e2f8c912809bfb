"""Thresholds with a guarantee: risk control for early exits (Jazbec et al., NeurIPS 2024, arXiv 2405.20915).

A threshold is accepted only if chance alone hardly explains how little early exits lose on validation data. Thresholds
are tested from 1 downwards until the first fails (fixed sequence testing), so each is tested at the full `delta`,
however many there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class RiskTest:
    """Measured risk and p-value of every threshold."""

    thresholds: Tensor  # (T,) float64, falling; each is shared by all early exits
    risk: Tensor  # (T,) float64, mean loss of an image
    p_values: Tensor  # (T,) float64, for the hypothesis that the true risk is above the largest one accepted

    def certified(self, delta: float) -> int:
        """Number of thresholds before the first whose p-value is above `delta`."""
        return int((self.p_values <= delta).long().cumprod(0).sum())


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
    if max_drop is None:
        tested = measure_risk(validation, max_risk, score, thresholds)
    else:
        tested = measure_gap(validation, max_drop, delta, score, thresholds)
    count = tested.certified(delta)
    return Choice.of(ThresholdPolicy(float(tested.thresholds[count - 1]) if count else math.inf, score), validation)


def measure_risk(
    validation: Predictions, max_risk: float, score: str = "confidence", thresholds: Sequence[float] | None = None
) -> RiskTest:
    """Measure the share of images spoilt by early exits, with a binomial p-value.

    The loss of an image is max(0, 1[its early answer is wrong] - 1[the last exit's is wrong]). A sum of n such losses
    is binomial, so P(Binomial(n, max_risk) <= losses) is a p-value for the hypothesis that the risk exceeds `max_risk`.
    """
    require(0 < max_risk < 1, f"max_risk must be between 0 and 1, got {max_risk}")
    falling = _falling(thresholds)
    num_images = len(validation.labels)
    lost = validation.correct[-1] & ~validation.correct  # (E, N); none at the last exit
    losses = count_leaving(lost, score_of(validation.logits[:-1], score), falling).sum(1)
    p_values = torch.from_numpy(binom.cdf(losses.numpy(), num_images, max_risk))
    return RiskTest(falling, losses / num_images, p_values)


def measure_gap(
    validation: Predictions,
    max_drop: float,
    delta: float = 0.1,
    score: str = "confidence",
    thresholds: Sequence[float] | None = None,
) -> RiskTest:
    """Measure the loss of accuracy, with a p-value by betting.

    The loss of an image is 1[its early answer is wrong] - 1[the last exit's is wrong]: -1, 0 or 1. A bet that the mean
    loss is below `max_drop` is placed on every image in turn (Waudby-Smith & Ramdas, arXiv 2010.09686). If the mean is
    above, a capital of 1 grows beyond 1 / p with probability at most p (Markov's inequality). Their bound takes the
    largest capital on the way, which depends much more on the order of the images than the capital at the end.
    """
    require(0 <= max_drop < 1, f"max_drop must be between 0 and 1, got {max_drop}")
    falling, scores = _falling(thresholds), score_of(validation.logits[:-1], score)
    order = torch.randperm(len(validation.labels), generator=torch.Generator().manual_seed(0))  # may be sorted by class
    scores, correct = scores[:, order], validation.correct[:, order].double()
    last = torch.ones_like(correct[-1:], dtype=torch.bool)
    gaps, p_values = [], []
    for threshold in falling.to(scores.dtype):
        exit_index = torch.cat([scores >= threshold, last]).int().argmax(0)
        gap = correct[-1] - correct.gather(0, exit_index[None])[0]
        gaps.append(gap.mean())
        p_values.append(_betting_p_value((gap + 1) / 2, (max_drop + 1) / 2, delta))
    return RiskTest(falling, torch.stack(gaps), torch.stack(p_values))


def _betting_p_value(losses: Tensor, limit: float, delta: float) -> Tensor:
    """P-value for the hypothesis that the mean of `losses` (N,) in [0, 1], in random order, is above `limit`."""
    counts = torch.arange(2, len(losses) + 2, dtype=losses.dtype)
    means = (losses.cumsum(0) + 0.5) / counts
    variances = ((losses - means).square().cumsum(0) + 0.25) / counts
    before = torch.cat([variances.new_tensor([0.25]), variances[:-1]])  # a bet must not know the image it is placed on
    bets = (2 * math.log(1 / delta) / (len(losses) * before)).sqrt().clamp_max(1)
    return (-(-bets * (losses - limit)).log1p().sum()).exp().clamp_max(1)


def _falling(thresholds: Sequence[float] | None) -> Tensor:
    thresholds = GUARANTEE_THRESHOLDS if thresholds is None else thresholds
    return checked_thresholds(thresholds).sort(descending=True).values
