"""Confusion: exits that disagree with the last one indicate a mistake (Kaya et al., ICML 2019, arXiv 1810.07052).

Two indicators are compared: the confusion score of a network with exits, and the doubt of its last exit or of a plain
network. An `ErrorIndicator` measures how well one separates mistakes from right answers: by the two counts that the
authors' code prints, by the overlap of the histograms that they draw, and by AUROC and AURC.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from eeutils.analysis.metrics import draw_images
from eeutils.analysis.predictions import Predictions
from eeutils.errors import require
from eeutils.fields import Positive, check_fields


def confusion_scores(predictions: Predictions) -> Tensor:
    """(N,) float64 in 0 to 2 (E - 1), summed L1 distance of the early exits' probabilities to the last one's."""
    return (predictions.probs[:-1] - predictions.probs[-1]).abs().sum(-1).double().sum(0)


def doubt(predictions: Predictions) -> Tensor:
    """(N,) float64, one minus the last exit's confidence, the indicator of a plain network."""
    return 1 - predictions.logits[-1].double().softmax(-1).amax(-1)


@dataclass(frozen=True)
class Standardization:
    """Scale of scores in standard deviations of the training scores, which makes different networks comparable.

    It keeps the order of the images, and so everything an `ErrorIndicator` measures.
    """

    mean: float  # of the training scores
    std: Positive  # their standard deviation, above 0

    def __post_init__(self) -> None:
        check_fields(self)

    @staticmethod
    def of(train_scores: Tensor) -> "Standardization":
        """Take the mean and standard deviation of `train_scores` (N,)."""
        scores = train_scores.double()
        return Standardization(float(scores.mean()), float(scores.std(correction=0)))

    def __call__(self, scores: Tensor) -> Tensor:
        """(N,) -> (N,) float64."""
        return (scores.double() - self.mean) / self.std


@dataclass(frozen=True)
class ErrorIndicator:
    """Power of a number that grows with suspicion to separate wrong answers from right ones."""

    edges: Tensor  # (B + 1,) float64, the edges of the histogram's equal bins
    right: Tensor  # (B,) int64, right answers in each bin
    wrong: Tensor  # (B,) int64, wrong answers in each bin
    suspected_right: int  # right answers more suspect than the mean wrong one (the authors' first count)
    trusted_wrong: int  # wrong answers less suspect than the mean right one (their second)
    split_errors: int  # answers on the wrong side of the best threshold
    auroc: float  # probability that a wrong answer is more suspect than a right one, ties counted as half
    coverage: Tensor  # (N,) float64, 1/N, 2/N, ..., 1: share of the answers kept, the least suspect first
    risk: Tensor  # (N,) float64, share of wrong ones among those kept, averaged over the order of ties

    @property
    def overlap(self) -> int:
        """Intersection of the histograms: the smaller count of each bin, summed."""
        return int(torch.minimum(self.right, self.wrong).sum())

    @property
    def overlap_of_shares(self) -> float:
        """Area common to the histograms scaled to area 1: 0 if they lie apart, 1 if they are the same.

        Unlike `overlap` it does not depend on how often the network errs.
        """
        return float(torch.minimum(self.right / self.right.sum(), self.wrong / self.wrong.sum()).sum())

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve, the mean of `risk`; it also grows with the network's error."""
        return float(self.risk.mean())

    @property
    def best_risk(self) -> Tensor:
        """(N,) float64, `risk` if every wrong answer were more suspect than every right one."""
        kept = torch.arange(1, len(self.risk) + 1, dtype=torch.float64)
        return (kept - int(self.right.sum())).clamp_min(0) / kept

    @property
    def excess_aurc(self) -> float:
        """`aurc` minus that of `best_risk`: the part that is due to the indicator."""
        return self.aurc - float(self.best_risk.mean())


def error_indicator(suspicion: Tensor, wrong: Tensor, bins: int = 30) -> ErrorIndicator:
    """Compare `suspicion` (N,), such as `confusion_scores`, with the mistakes, such as `~predictions.correct[-1]` (N,).

    Suspicion is larger for answers more likely wrong; `bins` are those of the histogram, between its extremes.
    """
    _check(suspicion, wrong)
    suspicion = suspicion.double()
    values, places, counts = suspicion.unique(return_inverse=True, return_counts=True)
    mistakes = places[wrong].bincount(minlength=len(values))  # (V,), of the answers equally suspect
    edges = np.histogram_bin_edges(values.numpy(), bins)
    of_right, of_wrong = suspicion[~wrong], suspicion[wrong]
    right, mistaken = (torch.from_numpy(np.histogram(each.numpy(), edges)[0]) for each in (of_right, of_wrong))
    kept = torch.arange(1, len(wrong) + 1, dtype=torch.float64)
    return ErrorIndicator(
        edges=torch.from_numpy(edges),
        right=right,
        wrong=mistaken,
        suspected_right=int((of_right > of_wrong.mean()).sum()),
        trusted_wrong=int((of_wrong < of_right.mean()).sum()),
        split_errors=_best_split(suspicion, wrong),
        auroc=float(roc_auc_score(wrong.numpy(), suspicion.numpy())),
        coverage=kept / len(wrong),
        risk=(mistakes / counts.double()).repeat_interleave(counts).cumsum(0) / kept,
    )


def auroc_draws(suspicion: Tensor, wrong: Tensor, *, draws: int = 1000, seed: int = 0) -> Tensor:
    """(draws,) float64, AUROC of `suspicion` (N,) on bootstrap samples of the images; see `error_indicator`.

    A seed always draws the same images, so draws for two indicators can be subtracted to bound their difference. A
    sample without wrong or without right answers gives NaN.
    """
    _check(suspicion, wrong)
    times = draw_images(len(wrong), draws, seed)
    values, order = suspicion[~wrong].double().sort()
    right = (~wrong).nonzero()[order, 0]
    # (draws, R + 1), draws of the 0, 1, ..., R least suspect right answers; integers, so exact.
    trusted = torch.nn.functional.pad(times[:, right], (1, 0)).cumsum(1)
    below, up_to = (torch.searchsorted(values, suspicion[wrong].double(), right=ties) for ties in (False, True))
    won = (trusted[:, below] + trusted[:, up_to]).double() / 2  # a tie counts half
    times_wrong = times[:, wrong].double()
    return (won * times_wrong).sum(1) / (times_wrong.sum(1) * trusted[:, -1])


def indicator_table(indicators: Mapping[str, ErrorIndicator]) -> pd.DataFrame:
    """Return one row of summary figures per indicator."""
    columns = {
        "AUROC": "auroc",
        "AURC": "aurc",
        "excess AURC": "excess_aurc",
        "overlap of shares": "overlap_of_shares",
        "best split's errors": "split_errors",
        "overlap": "overlap",
        "suspected right": "suspected_right",
        "trusted wrong": "trusted_wrong",
    }
    rows = [[getattr(indicator, figure) for figure in columns.values()] for indicator in indicators.values()]
    return pd.DataFrame(rows, columns=list(columns), index=pd.Index(list(indicators), name="indicator"))


def _best_split(suspicion: Tensor, wrong: Tensor) -> int:
    """Fewest answers on the wrong side of a threshold."""
    suspected_right, suspected_wrong, _ = roc_curve(wrong.numpy(), suspicion.numpy(), drop_intermediate=False)
    num_wrong = int(wrong.sum())
    errors = suspected_right * (len(wrong) - num_wrong) + (1 - suspected_wrong) * num_wrong
    return round(errors.min())


def _check(suspicion: Tensor, wrong: Tensor) -> None:
    fits = suspicion.ndim == 1 and suspicion.shape == wrong.shape and wrong.dtype == torch.bool
    got = f"{tuple(suspicion.shape)} and {tuple(wrong.shape)} {wrong.dtype}, {int(wrong.sum())} wrong"
    usable = fits and bool(suspicion.isfinite().all()) and wrong.unique().numel() == 2
    require(usable, f"suspicion and wrong must be finite (N,) and bool (N,), some wrong and some not, got {got}")
