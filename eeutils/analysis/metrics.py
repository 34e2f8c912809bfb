"""How good the exits are, one by one and together."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eeutils.analysis.costs import NetworkCosts
from eeutils.analysis.predictions import Predictions
from eeutils.models.contracts import check_exit_index

_ENSEMBLES = ("mean", "weighted", "geometric")


def exit_table(predictions: Predictions) -> pd.DataFrame:
    """One row per exit: accuracy, cost as the table has it and as a share, mean confidence, calibration error."""
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
    """One row per exit: multiply-adds and parameters up to there, and shares of the network's multiply-adds.

    Columns: "multiply-adds (M)", in millions; "share" of the whole network's; "of the head alone", the same for this
    exit's head by itself; "parameters".
    """
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
    """(N, C) probabilities of all exits taken together.

    Args:
        predictions: the table.
        how: "mean" of the probabilities; "weighted" mean of them; "geometric" mean, normalised again.
        weights: for "weighted", one per exit, not negative; `ensemble_weights` finds some on validation data.

    Raises:
        ValueError: if `how` is unknown, or `weights` are missing, unasked for, of the wrong number, negative, infinite
            or all zero.
    """
    if how not in _ENSEMBLES:
        raise ValueError(f"unknown ensemble {how!r}; choose from {list(_ENSEMBLES)}")
    if (weights is not None) != (how == "weighted"):
        raise ValueError(f"weights go with 'weighted' and with nothing else, got how={how!r}, weights={weights}")
    if how == "mean":
        return predictions.probs.mean(0)
    if how == "geometric":
        return predictions.logits.log_softmax(-1).mean(0).softmax(-1)
    usable = all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf
    if len(weights) != predictions.num_exits or not usable:
        raise ValueError(
            f"{predictions.num_exits} exits need as many weights, none negative and not all 0, got {tuple(weights)}"
        )
    shares = torch.tensor(weights, dtype=predictions.probs.dtype)
    return torch.einsum("e,enc->nc", shares / shares.sum(), predictions.probs)


def ensemble_weights(validation: Predictions) -> tuple[float, ...]:
    """One weight per exit, summing to 1: those under which the weighted mean makes the labels most likely.

    Choose them on validation data. The problem is concave, so there is one answer.
    """
    picked = validation.probs.gather(2, validation.labels[None, :, None].expand(validation.num_exits, -1, 1))[..., 0]
    picked = picked.double().clamp_min(1e-12)  # (E, N)
    weights = torch.full((validation.num_exits,), 1 / validation.num_exits, dtype=torch.float64)
    for _ in range(500):  # expectation maximisation for mixture weights: each step makes the labels more likely
        shares = weights[:, None] * picked
        weights = (shares / shares.sum(0)).mean(1)
    return tuple(weights.tolist())


def accuracy_of(probs: Tensor, labels: Tensor) -> float:
    """Share of the rows of `probs` (N, C) whose largest entry is at `labels` (N,)."""
    return float((probs.argmax(-1) == labels).double().mean())


def calibration_error(predictions: Predictions, bins: int = 15) -> Tensor:
    """(E,) float64, expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, equation 3).

    The mean gap between confidence and accuracy over `bins` equal slices of confidence, weighted by their size.

    Raises:
        ValueError: if `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    slices = (predictions.confidence.double() * bins).long().clamp_max(bins - 1)  # (E, N)
    gap = predictions.correct.double() - predictions.confidence.double()
    per_slice = torch.zeros(predictions.num_exits, bins, dtype=torch.float64).scatter_add_(1, slices, gap)
    return per_slice.abs().sum(1) / len(predictions.labels)


def sure_images(predictions: Predictions, exit_index: int, confidence: float) -> Tensor:
    """Positions of the images that an exit gets right with at least this confidence, surest first, (n,) int64.

    Raises:
        ValueError: if there is no such exit.
    """
    check_exit_index(exit_index, predictions.num_exits)
    sure = predictions.confidence[exit_index]
    return surest_first(predictions.correct[exit_index] & (sure >= confidence), sure)


def surest_first(chosen: Tensor, confidence: Tensor) -> Tensor:
    """Positions of the images `chosen` (N,) bool in order of falling `confidence` (N,), (n,) int64."""
    images = chosen.nonzero().flatten()
    return images[confidence[images].argsort(descending=True, stable=True)]


def gains(accuracy: Tensor, reference: float) -> Tensor:
    """Percentage points by which each `accuracy` (E,) is above (or, negative, below) `reference`."""
    return (accuracy - reference) * 100


def paired_bootstrap(correct: Tensor, reference: Tensor, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """95 % interval of the accuracy gained over `reference` on the same images, by drawing the images anew.

    Covers the luck of the test images, not that of a training seed.

    Args:
        correct: (E, N) bool.
        reference: (E, N) bool, of the same images in the same order.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        Lower and upper ends, each (E,) float64.

    Raises:
        ValueError: if the shapes differ.
    """
    if correct.shape != reference.shape:
        raise ValueError(
            f"both need the same exits and images, got {tuple(correct.shape)} and {tuple(reference.shape)}"
        )
    kinds = torch.stack([correct & ~reference, reference & ~correct, correct == reference], -1).sum(1)  # (E, 3)
    ends = []
    for counts in kinds:
        gained, lost, _ = draw_kinds(counts, draws, seed).T
        ends.append(bootstrap_interval((gained - lost) / correct.shape[1]))
    low, high = torch.tensor(ends, dtype=torch.float64).T
    return low, high


def points_gained(correct: Tensor, reference: Tensor) -> dict[str, float]:
    """Percentage points by which `correct` (N,) bool is above `reference` (N,) bool on the same images.

    Returns:
        "gain", and "low" and "high", the ends of its 95 % interval (`paired_bootstrap`).

    Raises:
        ValueError: if the shapes differ.
    """
    low, high = paired_bootstrap(correct[None], reference[None])
    gain = correct.double().mean() - reference.double().mean()
    return {"gain": 100 * float(gain), "low": 100 * float(low), "high": 100 * float(high)}


def draw_images(num_images: int, draws: int, seed: int) -> Tensor:
    """(draws, N) float32, how often each of N images is in each sample.

    One seed always draws the same images, whatever is measured on them.
    """
    picks = torch.randint(num_images, (draws, num_images), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, num_images).scatter_add_(1, picks, torch.ones(()).expand_as(picks))


def draw_kinds(counts: Tensor, draws: int, seed: int) -> Tensor:
    """(draws, K) float64, how many images of each kind are in each sample of a set that has `counts` (K,) of them.

    Where images of one kind count alike, it is enough to know how many of each kind are drawn.
    """
    shares = counts.double().numpy() / int(counts.sum())
    return torch.from_numpy(np.random.default_rng(seed).multinomial(int(counts.sum()), shares, size=draws)).double()


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """Lower and upper end of the middle 95 % of `values` (D,), one per sample; NaNs are left out.

    Both are NaN if there is nothing else.
    """
    said = values[~values.isnan()].numpy()
    low, high = np.quantile(said, [0.025, 0.975]) if len(said) else (np.nan, np.nan)
    return float(low), float(high)
