"""Metrics of the exits, alone and as an ensemble."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eeutils.analysis.costs import NetworkCosts
from eeutils.analysis.predictions import Predictions
from eeutils.errors import require
from eeutils.fields import check_choice, check_range


def exit_table(predictions: Predictions) -> pd.DataFrame:
    """Return one row per exit: accuracy, cost, cost as a share, mean confidence, calibration error."""
    return pd.DataFrame(
        {
            "accuracy": predictions.accuracy.numpy(),
            "cost": predictions.costs.numpy(),
            "relative cost": predictions.relative_costs.numpy(),
            "mean confidence": predictions.confidence.double().mean(1).numpy(),
            "calibration error": calibration_error(predictions).numpy(),
        },
        index=pd.Index(range(1, predictions.num_exits + 1), name="exit"),
    )


def cost_table(costs: NetworkCosts) -> pd.DataFrame:
    """Return one row per exit: multiply-adds and parameters up to there, and shares of the network's multiply-adds."""
    whole = costs.cumulative_macs[-1]
    return pd.DataFrame(
        {
            "multiply-adds (M)": costs.cumulative_macs.numpy() / 1e6,
            "share": (costs.cumulative_macs / whole).numpy(),
            "of the head alone": (costs.exit_macs / whole).numpy(),
            "parameters": costs.cumulative_params.numpy(),
        },
        index=pd.Index(range(1, len(costs.exit_macs) + 1), name="exit"),
    )


def ensemble_probs(predictions: Predictions, how: str = "mean", weights: Sequence[float] | None = None) -> Tensor:
    """Return the (N, C) probabilities of all exits combined: their "mean", "weighted" mean or "geometric" mean.

    `weights` are for "weighted" only, one per exit; see `ensemble_weights`.
    """
    check_choice("how", how, ("mean", "weighted", "geometric"))
    fits = (weights is not None) == (how == "weighted")
    require(fits, f"weights must be given for how='weighted' alone, got {how=} and {weights=}")
    if how == "mean":
        return predictions.probs.mean(0)
    if how == "geometric":
        return predictions.logits.log_softmax(-1).mean(0).softmax(-1)
    count = predictions.num_exits
    fits = len(weights) == count and min(weights) >= 0 and 0 < sum(weights) < math.inf
    require(fits, f"weights must be {count} numbers, none negative and not all 0, got {weights}")
    shares = torch.tensor(weights, dtype=predictions.probs.dtype)
    return torch.einsum("e,enc->nc", shares / shares.sum(), predictions.probs)


def ensemble_weights(validation: Predictions) -> tuple[float, ...]:
    """Return one weight per exit, summing to 1, under which the weighted mean makes the labels most likely.

    Choose them on validation data. The problem is concave, so the maximum is global.
    """
    picked = validation.probs.gather(2, validation.labels[None, :, None].expand(validation.num_exits, -1, 1))[..., 0]
    picked = picked.double().clamp_min(1e-12)  # (E, N)
    weights = torch.full((validation.num_exits,), 1 / validation.num_exits, dtype=torch.float64)
    for _ in range(500):  # expectation maximisation for mixture weights: each step makes the labels more likely
        shares = weights[:, None] * picked
        weights = (shares / shares.sum(0)).mean(1)
    return tuple(weights.tolist())


def accuracy_of(probs: Tensor, labels: Tensor) -> float:
    """Return the share of the rows of `probs` (N, C) whose largest entry is at `labels` (N,)."""
    return float((probs.argmax(-1) == labels).double().mean())


def calibration_error(predictions: Predictions, bins: int = 15) -> Tensor:
    """(E,) float64, expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, equation 3).

    The mean gap between confidence and accuracy over `bins` equal slices of confidence, weighted by their size.
    """
    slices = (predictions.confidence.double() * bins).long().clamp_max(bins - 1)  # (E, N)
    gap = predictions.correct.double() - predictions.confidence.double()
    per_slice = torch.zeros(predictions.num_exits, bins, dtype=torch.float64).scatter_add_(1, slices, gap)
    return per_slice.abs().sum(1) / len(predictions.labels)


def sure_images(predictions: Predictions, exit_index: int, confidence: float) -> Tensor:
    """Positions (n,) of the images that an exit gets right with at least this confidence, most confident first."""
    check_range("exit_index", exit_index, 0, predictions.num_exits - 1)
    sure = predictions.confidence[exit_index]
    return surest_first(predictions.correct[exit_index] & (sure >= confidence), sure)


def surest_first(chosen: Tensor, confidence: Tensor) -> Tensor:
    """Positions (n,) of the images `chosen` (N,) bool in order of falling `confidence` (N,)."""
    images = chosen.nonzero().flatten()
    return images[confidence[images].argsort(descending=True, stable=True)]


def paired_bootstrap(correct: Tensor, reference: Tensor, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bootstrap the 95 % interval of the accuracy gained over `reference` on the same images, both (E, N) bool.

    It covers the choice of the test images, not the training seed. Lower and upper ends are (E,) float64.
    """
    wanted, got = tuple(correct.shape), tuple(reference.shape)
    require(got == wanted, f"reference must have shape {wanted}, got {got}")
    kinds = torch.stack([correct & ~reference, reference & ~correct, correct == reference], -1).sum(1)  # (E, 3)
    ends = []
    for counts in kinds:
        gained, lost, _ = draw_kinds(counts, draws, seed).T
        ends.append(bootstrap_interval((gained - lost) / correct.shape[1]))
    low, high = torch.tensor(ends, dtype=torch.float64).T
    return low, high


def points_gained(correct: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the "gain" in points of `correct` over `reference`, (N,) bool, and its 95 % interval, "low" to "high"."""
    low, high = paired_bootstrap(correct[None], reference[None])
    gain = correct.double().mean() - reference.double().mean()
    return {"gain": 100 * float(gain), "low": 100 * float(low), "high": 100 * float(high)}


def draw_images(num_images: int, draws: int, seed: int) -> Tensor:
    """(draws, N) float32, count of each of N images in each bootstrap sample; a seed always draws the same."""
    picks = torch.randint(num_images, (draws, num_images), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, num_images).scatter_add_(1, picks, torch.ones(()).expand_as(picks))


def draw_kinds(counts: Tensor, draws: int, seed: int) -> Tensor:
    """(draws, K) float64, number of images of each kind in each bootstrap sample; the set has `counts` (K,)."""
    shares = counts.double().numpy() / int(counts.sum())
    return torch.from_numpy(np.random.default_rng(seed).multinomial(int(counts.sum()), shares, size=draws)).double()


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """Lower and upper end of the middle 95 % of `values` (D,), NaNs left out; NaN if nothing is left."""
    known = values[~values.isnan()].numpy()
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)
