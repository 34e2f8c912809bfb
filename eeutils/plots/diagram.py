"""Diagrams, drawn from the objects that they show."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from eeutils.analysis.costs import measure_costs
from eeutils.analysis.decisions import Decisions
from eeutils.models import MultiExitNet
from eeutils.models.contracts import on_meta, walk_units
from eeutils.models.multiexit import Features
from eeutils.plots.style import color_over, exit_colors, exit_name, new_axes

_UNIT = "#d5dbe1"
_GAP = 0.35  # between two boxes, in their widths


def plot_network(net: MultiExitNet, image_shape: tuple[int, int, int], ax: Axes | None = None) -> Axes:
    """Units as boxes as high as their maps, exits above them, and the share of the cost up to each."""
    maps = [features for _, features in walk_units(on_meta(net), image_shape)]
    costs = measure_costs(net, image_shape)
    shares = (costs.cumulative_macs / costs.cumulative_macs[-1]).tolist()
    if ax is None:
        ax = plt.subplots(figsize=(min(max(6.0, 0.8 * len(maps)), 13.0), 3.0))[1]
    step, largest = 1 + _GAP, max(map(_side, maps))
    for unit, features in enumerate(maps):
        height = 0.35 + 0.65 * _side(features) / largest
        ax.add_patch(Rectangle((unit * step, -height / 2), 1, height, facecolor=_UNIT, edgecolor="gray"))
        ax.text(unit * step + 0.5, 0, str(unit), ha="center", va="center", fontsize=9)
        if unit == 0 or _size(features) != _size(maps[unit - 1]):
            ax.text(unit * step + 0.5, -0.58, _size(features), ha="center", va="top", fontsize=7, linespacing=1.4)
        if unit > 0:
            _arrow(ax, (unit * step - _GAP, 0), (unit * step, 0))
    colors = exit_colors(net.num_exits)
    for index, (unit, share, color) in enumerate(zip(net.exit_after, shares, colors, strict=True)):
        middle = unit * step + 0.5
        _arrow(ax, (middle, 0.5), (middle, 0.78))
        ax.add_patch(Rectangle((middle - 0.62, 0.78), 1.24, 0.34, facecolor=color, edgecolor="none"))
        name = exit_name(index, net.num_exits).replace("last exit", "last")
        ax.text(middle, 0.95, name, ha="center", va="center", fontsize=7, color=color_over(color))
        ax.text(middle, 1.18, f"{share:.0%}", ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(-0.2, len(maps) * step), ylim=(-0.95, 1.45))
    ax.axis("off")
    ax.set_title("units with their maps, exits, and the share of the cost up to each", fontsize=9)
    return ax


def plot_poolings(features: Tensor) -> Figure:
    """Average pooling against a spatial pyramid of maxima on one feature map (H, W)."""
    grids = {"feature map": features, "average": features.mean()[None, None]}
    pool = torch.nn.functional.adaptive_max_pool2d
    grids |= {f"pyramid, {level} x {level}": pool(features[None, None], level)[0, 0] for level in (1, 2, 4)}
    figure, axes = plt.subplots(1, len(grids), figsize=(2.1 * len(grids), 2.5))
    low, high = float(features.min()), float(features.max())
    for ax, (title, grid) in zip(axes, grids.items(), strict=True):
        ax.imshow(grid.numpy(), cmap="viridis", vmin=low, vmax=high)
        values = f"{grid.numel()} value{'s' * (grid.numel() > 1)}"
        ax.set_title(f"{title}\n{values}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def plot_shrinking_batch(decisions: Decisions, batch_size: int = 256, ax: Axes | None = None) -> Axes:
    """Images of the first batch that are still in the cascade at each stage, and those that leave after it."""
    ax = ax or new_axes()
    num_exits = len(decisions.costs)
    left_at = decisions.exit_index[:batch_size]
    staying = [int((left_at >= index).sum()) for index in range(num_exits)]
    colors = exit_colors(num_exits)
    for index, (images, color) in enumerate(zip(staying, colors, strict=True)):
        ax.add_patch(Rectangle((index, -images / 2), 0.8, images, facecolor=color, edgecolor="none"))
        ax.text(index + 0.4, 0, str(images), ha="center", va="center", color=color_over(color))
        leaving = images - (staying[index + 1] if index + 1 < num_exits else 0)
        ax.text(index + 0.4, staying[0] / 2 * 1.08, f"{leaving} leave", ha="center", fontsize=9)
    ax.set(xlim=(-0.2, num_exits), ylim=(-staying[0] * 0.55, staying[0] * 0.62))
    ax.set_xticks([index + 0.4 for index in range(num_exits)], [f"stage {index + 1}" for index in range(num_exits)])
    ax.set(yticks=[], title=f"Images still computed, of a batch of {len(left_at)}")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return ax


def _side(features: Features) -> int:
    return features.shape[-1] if isinstance(features, Tensor) and features.ndim == 4 else 1


def _size(features: Features) -> str:
    if not isinstance(features, Tensor):
        return ""
    _, channels, *sides = features.shape
    return f"{' x '.join(map(str, sides))}\n{channels} ch." if sides else str(channels)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color="gray", linewidth=1))
