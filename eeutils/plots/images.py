"""Figures of a dataset: class counts, images, embeddings."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import Tensor

from eeutils.data import Split
from eeutils.plots.style import draw_image, legend_below, new_axes


def plot_class_histogram(splits: Mapping[str, Split], ax: Axes | None = None) -> Axes:
    """Number of images per class in each split."""
    ax = ax or new_axes()
    classes = next(iter(splits.values())).classes
    width = 0.8 / len(splits)
    for number, (name, split) in enumerate(splits.items()):
        counts = split.labels.bincount(minlength=len(classes)).cpu().numpy()
        ax.bar(np.arange(len(classes)) + (number + 0.5) * width - 0.4, counts, width, label=f"{name} ({len(split):,})")
    ax.set_xticks(range(len(classes)), classes, rotation=35, ha="right")
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="images", title="Images of each class")
    legend_below(ax, offset=-0.28)
    return ax


def plot_images(
    split: Split,
    index: Sequence[int] | Tensor,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    size: float = 1.0,
) -> plt.Figure:
    """The images at positions `index` in a grid, each under its title (by default its class)."""
    positions = torch.as_tensor(index).tolist()
    if titles is None:
        titles = [split.classes[split.labels[position]] for position in positions]
    if len(titles) != len(positions):
        raise ValueError(f"{len(positions)} images need as many titles, got {len(titles)}: {list(titles)}")
    rows = max(1, -(-len(positions) // columns))
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    height = size + 0.1 + 0.14 * lines * size**0.5
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, height * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    longest = max((len(line) for title in titles for line in title.splitlines()), default=1)
    fontsize = min(7 * size**0.5, 125 * size / longest)  # so that neighbours do not touch
    for ax, position, title in zip(axes.flat, positions, titles, strict=False):
        draw_image(ax, split.images[position])
        ax.set_title(title, fontsize=fontsize, pad=2)
    figure.tight_layout(pad=0.3)
    return figure


def plot_embedding(
    points: np.ndarray, split: Split, ax: Axes | None = None, legend: bool = True, named: bool = False
) -> Axes:
    """Points in the plane (N, 2), one per image of `split`; colour and marker tell the class.

    `named` writes the name of each class on the middle of its points.
    """
    ax = ax or new_axes()
    looks = zip(cycle(sns.color_palette("colorblind")), cycle("os^vDPX*<>"))
    for (number, name), (color, marker) in zip(enumerate(split.classes), looks, strict=False):
        chosen = points[(split.labels == number).cpu().numpy()]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=9, alpha=0.7, color=color, marker=marker, linewidths=0, label=name)
        if named and len(chosen):
            box = {"facecolor": "white", "edgecolor": color, "alpha": 0.8, "pad": 1}
            ax.text(*np.median(chosen, axis=0), name, ha="center", va="center", fontsize=8, bbox=box)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    if legend:
        ax.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
