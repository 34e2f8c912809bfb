"""Style that all figures share."""

import re
from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.typing import ColorType
from numpy.typing import ArrayLike
from torch import Tensor

# Blue and orange of seaborn's "colorblind": red and green would become one olive for many readers.
ABOVE, BELOW = RIGHT, WRONG = "#0173b2", "#de8f05"
_POOLS = ("avg", "spp", "conv", "mixed")


def use_style() -> None:
    """Set one look for all figures: light grid, no box, colour-blind safe colours, legends that hide the grid."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"figure.figsize": (7, 4), "legend.framealpha": 1, "legend.edgecolor": "white"})


def network_looks(num_exits: Mapping[str, int]) -> dict[str, tuple[ColorType, str]]:
    """Return colour and line style of each network: its pooling, as its name says, and its number of exits.

    Networks that these do not tell apart get different colours.
    """
    palette = sns.color_palette("colorblind")
    lines = {name: (":", "--", "-")[min(count, 3) - 1] for name, count in num_exits.items()}
    pools = {name: re.search(f"-({'|'.join(_POOLS)})", name) for name in num_exits}
    looks = {name: (palette[_POOLS.index(found[1])], lines[name]) for name, found in pools.items() if found}
    if len(set(looks.values())) < len(num_exits):
        looks = {name: (color, lines[name]) for name, color in zip(num_exits, cycle(palette), strict=False)}
    return looks


def exit_name(index: int, num_exits: int) -> str:
    """Label of the exit at `index`, counted from 0: "exit 1", ..., "last exit"; "classifier" if it is the only one."""
    if num_exits == 1:
        return "classifier"
    return "last exit" if index == num_exits - 1 else f"exit {index + 1}"


def exit_colors(num_exits: int) -> list[ColorType]:
    """One colour per exit, from pale for the shallowest to dark for the last."""
    return list(sns.color_palette("crest", as_cmap=True)(np.linspace(0, 1, num_exits)))


def color_over(background: ColorType) -> str:
    """Black or white, whichever contrasts more with `background` (WCAG)."""
    return "black" if sns.utils.relative_luminance(background) > 0.179 else "white"


def draw_right_and_wrong(
    ax: Axes, edges: ArrayLike, right: tuple[str, ArrayLike], wrong: tuple[str, ArrayLike]
) -> None:
    """Two overlaid histograms, a label and heights (B,) each: one filled, one outlined."""
    label, heights = right
    ax.stairs(heights, edges, fill=True, alpha=0.6, color=RIGHT, label=label)
    label, heights = wrong
    ax.stairs(heights, edges, linewidth=2, color=WRONG, label=label)


def log_shares(ax: Axes) -> None:
    """Give shares a logarithmic axis in percent, from 0.1 % on."""
    ax.set_yscale("log")
    ax.set_ylim(0.001, 1)
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")


def draw_image(ax: Axes, image: Tensor) -> None:
    """Draw an image (C, H, W) of one channel or three, from any device."""
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest", cmap="gray")


def legend_below(ax: Axes, offset: float = -0.18) -> None:
    """Put a legend under the axes, four entries a line; `offset` in axes heights."""
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, offset), ncols=min(len(handles), 4))


def new_axes() -> Axes:
    """Create a figure and return its axes."""
    return plt.subplots()[1]
