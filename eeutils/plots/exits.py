"""How good exits are, what they cost, and who leaves where."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from eeutils.analysis.metrics import accuracy_per_exit, gains
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Curve, accuracy_cost_curve
from eeutils.plots.style import ABOVE, BELOW, exit_name, legend_below, new_axes


def plot_accuracies(networks: Mapping[str, Predictions], ax: Axes | None = None) -> Axes:
    """Accuracy of every exit of every network, as bars with their values."""
    ax = ax or new_axes()
    bars = {
        f"{name}\n{exit_name(index, predictions.num_exits)}": 100 * float(accuracy)
        for name, predictions in networks.items()
        for index, accuracy in enumerate(accuracy_per_exit(predictions))
    }
    counts = [predictions.num_exits for predictions in networks.values()]
    palette = sns.color_palette("colorblind")
    colors = [palette[number % len(palette)] for number, count in enumerate(counts) for _ in range(count)]
    drawn = ax.barh(list(bars), list(bars.values()), color=colors)
    ax.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="accuracy (%)", xlim=(max(0, min(bars.values()) - 10), min(100, max(bars.values()) + 3)))
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="y", visible=False)
    return ax


def plot_gains(networks: Mapping[str, Predictions], reference: float, ax: Axes | None = None) -> Axes:
    """Percentage points by which each exit is above (green) or below (red) the accuracy `reference` (0 to 1)."""
    ax = ax or new_axes()
    bars = {
        f"{name}\n{exit_name(index, predictions.num_exits)}": float(points)
        for name, predictions in networks.items()
        for index, points in enumerate(gains(accuracy_per_exit(predictions), reference))
    }
    drawn = ax.barh(list(bars), list(bars.values()), color=[ABOVE if value >= 0 else BELOW for value in bars.values()])
    ax.bar_label(drawn, fmt="%+.2f", padding=3, fontsize=8)
    ax.axvline(0, color="black", linewidth=1)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(xlabel=f"points above or below {reference:.2%}")
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="y", visible=False)
    return ax


def plot_curves(networks: Mapping[str, Predictions], ax: Axes | None = None, score: str = "confidence") -> Axes:
    """Accuracy against mean cost as the threshold moves (lines), and each exit taken by itself (dots)."""
    ax = ax or new_axes()
    for (name, predictions), color in zip(networks.items(), cycle(sns.color_palette("colorblind"))):
        macs = predictions.costs.numpy() / 1e6
        exits = 100 * accuracy_per_exit(predictions).numpy()
        if predictions.num_exits == 1:
            ax.plot(macs, exits, "*", markersize=13, color=color, label=name)
            continue
        curve: Curve = accuracy_cost_curve(predictions, score=score)
        ax.plot(curve.cost.numpy() / 1e6, 100 * curve.accuracy.numpy(), color=color, label=name)
        ax.plot(macs, exits, "o", color=color, markersize=6, markerfacecolor="white")
    ax.set(xlabel="mean multiply-adds an image (M)", ylabel="accuracy (%)", title="What accuracy costs")
    _legend_of_curves(ax)
    return ax


def _legend_of_curves(ax: Axes) -> None:
    """A line a network, and once what the dots are."""
    named, _ = ax.get_legend_handles_labels()
    dot = Line2D([], [], marker="o", linestyle="", color="gray", markerfacecolor="white", label="an exit by itself")
    ax.legend(handles=[*named, dot], fontsize=8, loc="lower right")


def plot_confidence(predictions: Predictions, exit_index: int, ax: Axes | None = None) -> Axes:
    """How sure an exit is where it is right, and where it is wrong: shares of each kind, however rare it is."""
    ax = ax or new_axes()
    correct, sure = predictions.correct[exit_index], predictions.confidence[exit_index]
    for label, chosen, color in (("right", correct, ABOVE), ("wrong", ~correct, BELOW)):
        share = f"{label} ({float(chosen.double().mean()):.1%})"
        shares = np.full(int(chosen.sum()), 1 / max(int(chosen.sum()), 1))
        ax.hist(sure[chosen].numpy(), np.linspace(0, 1, 41), weights=shares, alpha=0.65, color=color, label=share)
    ax.set(xlabel="confidence", ylabel="share of its kind", title=exit_name(exit_index, predictions.num_exits))
    ax.legend(frameon=False)
    return ax


def plot_exit_rates(rates: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Where images leave: for each row (a class, a threshold) the share (E,) that each exit takes, stacked."""
    ax = ax or new_axes()
    table = torch.stack(list(rates.values())).numpy()
    left = np.zeros(len(rates))
    for index, color in zip(range(table.shape[1]), sns.color_palette("crest", table.shape[1]), strict=True):
        drawn = ax.barh(list(rates), table[:, index], left=left, color=color, label=exit_name(index, table.shape[1]))
        ax.bar_label(
            drawn,
            [f"{share:.0%}" if share > 0.04 else "" for share in table[:, index]],
            label_type="center",
            fontsize=8,
            color="white",
        )
        left += table[:, index]
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(visible=False)
    ax.set(xlim=(0, 1), xlabel="share of the images")
    legend_below(ax)
    return ax
