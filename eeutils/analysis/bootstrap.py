"""The bootstrap: how much of a figure is the luck of the images it was measured on.

Images are resampled with replacement, as many as there are, again and again. That covers the luck of the images, not
that of a training seed.
"""

import numpy as np
import torch
from torch import Tensor


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
