"""Figures of attributions: the pixels that exits respond to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from eeutils.data import Split
from eeutils.plots.style import draw_image

if TYPE_CHECKING:
    from eeutils.analysis.gradcam import Explanation  # captum takes a second to import

_CELLS = 8
_LOUDEST = 0.995  # a few pixels far above the others would leave the rest of a picture grey


def plot_attributions(
    split: Split, index: Sequence[int] | Tensor, exits: Mapping[str, "Explanation"], size: float = 2.0
) -> plt.Figure:
    """One row per image: the image, the map of each exit, then guided backpropagation times that map of each.

    Over the maps stand the class that the exit names and its confidence; guided maps are grey where they are zero.
    Maps are averaged on 8 x 8 cells: finer ones are dots that nobody can read.

    Args:
        split: where the images are.
        index: the positions in it of the N images, in the order of the explanations; N may be 0.
        exits: explanations (`eeutils.analysis.gradcam.explain`) by the name that a column of theirs gets.
        size: of an image, in inches.
    """
    positions = torch.as_tensor(index, dtype=torch.int64).tolist()
    for name, found in exits.items():
        if len(found.predicted) != len(positions):
            raise ValueError(f"{name!r} explains {len(found.predicted)} images, but there are {len(positions)} to show")
    rows, columns = max(1, len(positions)), 1 + 2 * len(exits)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.3) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for row, position in enumerate(positions):
        _draw_row(axes[row], split, position, {name: (found, row) for name, found in exits.items()})
    figure.tight_layout(pad=0.3)
    return figure


def _draw_row(
    axes: Sequence[Axes], split: Split, position: int, exits: Mapping[str, tuple["Explanation", int]]
) -> None:
    image = split.images[position]
    draw_image(axes[0], image)
    _title(axes[0], split.classes[split.labels[position]])
    for column, (name, (found, row)) in enumerate(exits.items(), 1):
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
