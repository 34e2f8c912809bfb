"""Figures of images: class counts, grids, embeddings, and the pixels that exits respond to."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from eeutils.data import Split
from eeutils.errors import require
from eeutils.plots.style import draw_image, legend_below, new_axes

if TYPE_CHECKING:
    from eeutils.analysis.gradcam import Explanation  # captum takes a second to import


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
    fits = len(titles) == len(positions)
    require(fits, f"titles must be {len(positions)}, one for each image, got {len(titles)}: {list(titles)}")
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


_CELLS = 8
_LOUDEST = 0.995  # a few pixels far above the others would leave the rest of a picture grey


def plot_attributions(split: Split, index: Sequence[int] | Tensor, exits: Mapping[str, "Explanation"]) -> plt.Figure:
    """One row per image: the image, the map of each exit, then guided backpropagation times that map of each.

    Over the maps stand the class that the exit names and its confidence; guided maps are grey where they are zero.
    Maps are averaged on 8 x 8 cells: finer ones are dots that nobody can read. `index` are the positions of the images
    in `split`, in the order of the explanations (`eeutils.analysis.gradcam.explain`).
    """
    positions = torch.as_tensor(index, dtype=torch.int64).tolist()
    for name, found in exits.items():
        given, wanted = len(found.predicted), len(positions)
        require(given == wanted, f"exits must explain {wanted} images, got {given} of {name!r}")
    rows, columns = max(1, len(positions)), 1 + 2 * len(exits)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.3 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for row, position in enumerate(positions):
        _draw_row(axes[row], split, position, exits, row)
    figure.tight_layout(pad=0.3)
    return figure


def _draw_row(axes: Sequence[Axes], split: Split, position: int, exits: Mapping[str, "Explanation"], row: int) -> None:
    image = split.images[position]
    draw_image(axes[0], image)
    _title(axes[0], split.classes[split.labels[position]])
    for column, (name, found) in enumerate(exits.items(), 1):
        named = f"{split.classes[found.predicted[row]]} {float(found.confidence[row]):.0%}"
        overlay, guided = axes[column], axes[column + len(exits)]
        draw_image(overlay, image.float().mean(0, keepdim=True))
        height, width = image.shape[1:]
        cam = adaptive_avg_pool2d(found.cam[row].cpu()[None], (min(_CELLS, height), min(_CELLS, width)))[0]
        cam = (cam / cam.max().clamp_min(1e-12)).numpy()
        where = (-0.5, width - 0.5, height - 0.5, -0.5)
        overlay.imshow(cam, cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="bilinear", extent=where)
        _title(overlay, f"{name}: {named}")
        guided.imshow(_around_grey(found.guided_cam[row].cpu()).numpy(), interpolation="nearest", cmap="gray")
        _title(guided, f"{name}, guided")


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=8, pad=2)


def _around_grey(attribution: Tensor) -> Tensor:
    """Signed (C, H, W) -> (H, W, C) from 0 to 1, zero at 0.5."""
    largest = attribution.abs().flatten().quantile(_LOUDEST).clamp_min(torch.finfo(attribution.dtype).tiny)
    return (0.5 + 0.5 * attribution / largest).clamp(0, 1).permute(1, 2, 0)
