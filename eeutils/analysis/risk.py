"""Thresholds with a guarantee: risk control for early exits (Jazbec et al., NeurIPS 2024, arXiv 2405.20915).

Leaving early does harm where it is wrong and the whole network would have been right. The share of such images is the
risk. It is measured on validation data, and a threshold is taken only if chance alone hardly explains a risk that low.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions, check_predictions
from eeutils.analysis.thresholds import Choice, checked_thresholds, count_leaving

# From 1 down to 0 in steps that start at a millionth, since scores crowd near 1. Set before any data are seen: the
# guarantee is for thresholds that do not depend on the validation images.
GUARANTEE_THRESHOLDS = (1.0, *(1 - 10 ** (step / 100 - 6) for step in range(601)))


@dataclass(frozen=True)
class RiskTest:
    """What validation data say of every threshold.

    Attributes:
        thresholds: (T,) float64, falling: one for all early exits.
        risk: (T,) float64, share of the images lost: answered wrongly early and rightly by the last exit.
        p_values: (T,) float64, chance of a measured risk this low or lower if the true one were `max_risk`.
    """

    thresholds: Tensor
    risk: Tensor
    p_values: Tensor

    def certified(self, delta: float) -> int:
        """How many thresholds, counted from the first, come before the first whose p-value is above `delta`."""
        return int((self.p_values <= delta).long().cumprod(0).sum())


def measure_risk(
    validation: Predictions,
    max_risk: float,
    score: str = "confidence",
    thresholds: Sequence[float] | None = None,
) -> RiskTest:
    """Measured risk and binomial p-value of every threshold.

    The loss of an image is max(0, 1[its early answer is wrong] - 1[the last exit's is wrong]). A sum of n such losses
    is binomial, so P(Binomial(n, max_risk) <= losses) is a p-value for the hypothesis that the risk is that or more.

    Args:
        validation: n images like those to come, not used in training.
        max_risk: the risk to be excluded, in (0, 1).
        score: see `eeutils.analysis.policies.score_of`.
        thresholds: (T,) in [0, 1], or infinite; chosen without a look at `validation`; by default
            `GUARANTEE_THRESHOLDS`.

    Raises:
        TypeError: if `validation` is no table of predictions.
        ValueError: if `max_risk` is not in (0, 1), a threshold makes no sense, there is none, or the score is unknown.
    """
    check_predictions(validation)
    if not 0 < max_risk < 1:
        raise ValueError(f"max_risk is a share of the images in (0, 1), got {max_risk}")
    thresholds = GUARANTEE_THRESHOLDS if thresholds is None else thresholds
    falling = checked_thresholds(thresholds).sort(descending=True).values
    num_images = len(validation.labels)
    lost = validation.correct[-1] & ~validation.correct  # (E, N); at the last exit nothing is
    losses = count_leaving(lost, score_of(validation.logits[:-1], score), falling).sum(1)
    p_values = torch.from_numpy(binom.cdf(losses.numpy(), num_images, max_risk))
    return RiskTest(falling, losses / num_images, p_values)


def choose_with_guarantee(
    validation: Predictions,
    max_risk: float,
    delta: float = 0.1,
    score: str = "confidence",
    thresholds: Sequence[float] | None = None,
) -> Choice:
    """The lowest threshold certified to lose at most `max_risk` of the images to early answers.

    With probability 1 - `delta` or more over the draw of the validation images, no more than `max_risk` of *all* images
    like them are answered wrongly early though the last exit would have been right. Accuracy then falls by no more than
    that, and less as far as early answers also correct the last exit's mistakes.

    Thresholds are tested from 1 downwards, and the walk stops at the first that fails (fixed sequence testing): so each
    is tested at the full `delta`, however many there are.

    **If not even the first threshold passes, nothing is certified, and the choice is the policy that never leaves
    early** (its threshold is infinite, its relative cost 1). So it is with few images: with fewer
    than log(delta) / log(1 - max_risk) of them, even no loss at all proves nothing.

    Args:
        validation: images like those to come, not used in training, nor to choose the arguments here.
        max_risk: the largest risk accepted, in (0, 1); 0.01 is one image in a hundred (the paper's epsilon).
        delta: the chance accepted that the risk is larger after all, in (0, 1).
        score: see `eeutils.analysis.policies.score_of`.
        thresholds: (T,) in [0, 1], or infinite, to choose from; chosen without a look at `validation`; by default
            `GUARANTEE_THRESHOLDS`, 602 of them from 1 to 0.

    Raises:
        TypeError: if `validation` is no table of predictions.
        ValueError: if `delta` is not in (0, 1), or as in `measure_risk`.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability in (0, 1), got {delta}")
    tested = measure_risk(validation, max_risk, score, thresholds)
    count = tested.certified(delta)
    return Choice.of(ThresholdPolicy(float(tested.thresholds[count - 1]) if count else math.inf, score), validation)
