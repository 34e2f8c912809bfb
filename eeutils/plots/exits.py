"""Figures of exits and of the policies that choose one: accuracy, cost, and exit rates."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.typing import ColorType
from torch import Tensor

from eeutils.analysis.costs import NetworkCosts
from eeutils.analysis.decisions import Decisions
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import accuracy_cost_curve, exit_rates_at
from eeutils.errors import require
from eeutils.plots.style import (
    ABOVE,
    BELOW,
    color_over,
    draw_right_and_wrong,
    exit_colors,
    exit_name,
    legend_below,
    log_shares,
    network_looks,
    new_axes,
)


def plot_accuracies(networks: Mapping[str, Predictions], ax: Axes | None = None) -> Axes:
    """Accuracy of every exit of every network, as bars with their values."""
    ax = ax or new_axes()
    bars = {
        f"{name}\n{exit_name(index, predictions.num_exits)}": 100 * float(accuracy)
        for name, predictions in networks.items()
        for index, accuracy in enumerate(predictions.accuracy)
    }
    counts = {name: predictions.num_exits for name, predictions in networks.items()}
    colors = [color for name, (color, _) in network_looks(counts).items() for _ in range(counts[name])]
    _bars(ax, bars, colors, "%.1f")
    ax.set(xlabel="accuracy (%)", xlim=(0, 105), title="Accuracy of every exit")
    return ax


def _bars(ax: Axes, bars: Mapping[str, float], colors: Sequence[ColorType], number: str) -> None:
    """Draw horizontal bars with their names and numbers, the first on top."""
    drawn = ax.barh(list(bars), list(bars.values()), color=colors)
    ax.bar_label(drawn, fmt=number, padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="y", visible=False)


def plot_gains(
    networks: Mapping[str, Predictions],
    reference: float,
    ax: Axes | None = None,
    reference_name: str = "the plain network",
    *,
    first_exits: bool = True,
) -> Axes:
    """Percentage points by which each exit is above (blue) or below (orange) the accuracy `reference` (0 to 1).

    First exits are often so far below that the others look alike; `first_exits=False` leaves them out.
    """
    ax = ax or new_axes()
    bars = {
        f"{name}\n{exit_name(index, predictions.num_exits)}": float(points)
        for name, predictions in networks.items()
        for index, points in enumerate(100 * (predictions.accuracy - reference))
        if first_exits or index > 0
    }
    _bars(ax, bars, [ABOVE if value >= 0 else BELOW for value in bars.values()], "%+.2f")
    ax.axvline(0, color="black", linewidth=1)
    ax.margins(x=0.15)
    below = f"points above or below {reference_name} ({100 * reference:.2f} %)"
    ax.set(xlabel=below, title="What every exit gains or loses")
    return ax


def plot_curves(networks: Mapping[str, Predictions], ax: Axes | None = None) -> Axes:
    """Accuracy against mean cost as the threshold on confidence moves (lines), and of each exit alone (dots)."""
    ax = ax or new_axes()
    looks = network_looks({name: predictions.num_exits for name, predictions in networks.items()})
    for name, predictions in networks.items():
        color, line = looks[name]
        costs = predictions.costs.numpy() / 1e6
        exits = 100 * predictions.accuracy.numpy()
        if predictions.num_exits == 1:
            ax.plot(costs, exits, "*", markersize=13, color=color, label=name)
            continue
        curve = accuracy_cost_curve(predictions)
        ax.plot(curve.cost.numpy() / 1e6, 100 * curve.accuracy.numpy(), line, color=color, label=name)
        ax.plot(costs, exits, "o", color=color, markersize=6, markerfacecolor="white")
    ax.set(xlabel="mean multiply-adds an image (M)", ylabel="accuracy (%)", title="What accuracy costs")
    named, _ = ax.get_legend_handles_labels()
    dot = Line2D([], [], marker="o", linestyle="", color="gray", markerfacecolor="white", label="an exit by itself")
    ax.legend(handles=[*named, dot], fontsize=8, loc="lower right")
    return ax


def plot_confidence(predictions: Predictions, exit_index: int, ax: Axes | None = None) -> Axes:
    """Histograms of an exit's confidence for right and wrong answers, each normalised by itself, on a log axis.

    On a linear one the last bin, which often has most of the answers, would flatten the others.
    """
    ax = ax or new_axes()
    correct, sure = predictions.correct[exit_index], predictions.confidence[exit_index]
    edges = np.linspace(0, 1, 41)
    right, wrong = (
        (f"{label} ({len(values) / len(sure):.1%})", np.histogram(values, edges)[0] / max(len(values), 1))
        for label, values in (("right", sure[correct]), ("wrong", sure[~correct]))
    )
    draw_right_and_wrong(ax, edges, right, wrong)
    log_shares(ax)
    ax.set(xlabel="confidence", ylabel="share of its kind", title=exit_name(exit_index, predictions.num_exits))
    ax.legend(loc="upper left")
    return ax


def plot_exit_places(costs: Mapping[str, NetworkCosts], asked: Sequence[float] = (), ax: Axes | None = None) -> Axes:
    """Place of each exit as a share of its network's multiply-adds, one row per network; shares `asked` are dotted."""
    ax = ax or new_axes()
    for row, (cost, color) in enumerate(zip(costs.values(), cycle(sns.color_palette("colorblind")))):
        shares = (cost.cumulative_macs / cost.cumulative_macs[-1]).tolist()
        ax.plot(shares, [row] * len(shares), "o", color=color)
        for share, unit in zip(shares, cost.exit_after, strict=True):
            ax.annotate(str(unit), (share, row), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    for share in asked:
        ax.axvline(share, color="gray", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(costs)), costs)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.invert_yaxis()
    ax.margins(y=0.2)
    where = "Where exits stand (numbers: the unit they follow)"
    ax.set(xlabel="share of the multiply-adds, heads counted", title=where)
    return ax


def plot_exit_rates(rates: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Exit rates as stacked bars: for each row (a class, a threshold) the share (E,) of images at each exit."""
    num_exits = {row: len(shares) for row, shares in rates.items()}
    require(len(set(num_exits.values())) == 1, f"rates must be of as many exits in each row, got {num_exits}")
    ax = ax or new_axes()
    table = torch.stack(list(rates.values())).numpy()
    left = np.zeros(len(rates))
    for index, color in zip(range(table.shape[1]), exit_colors(table.shape[1]), strict=True):
        drawn = ax.barh(list(rates), table[:, index], left=left, color=color, label=exit_name(index, table.shape[1]))
        written = [f"{share:.0%}" if share > 0.04 else "" for share in table[:, index]]
        ax.bar_label(drawn, written, label_type="center", fontsize=8, color=color_over(color))
        left += table[:, index]
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(visible=False)
    ax.set(xlim=(0, 1), xlabel="share of the images")
    legend_below(ax)
    return ax


_THRESHOLDS = np.linspace(0, 1, 501)


def plot_exit_rates_by_threshold(predictions: Predictions, ax: Axes | None = None) -> Axes:
    """Exit rates, stacked, as one threshold for all early exits moves."""
    ax = ax or new_axes()
    names = [exit_name(index, predictions.num_exits) for index in range(predictions.num_exits)]
    rates = exit_rates_at(predictions, _THRESHOLDS).numpy()
    ax.stackplot(_THRESHOLDS, rates.T, labels=names, colors=exit_colors(len(names)), linewidth=0)
    _over_thresholds(ax)
    ax.set(ylabel="share of the images", title="Where images leave")
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], names[::-1], fontsize=8, loc="center left")  # in the order of the stack
    return ax


def plot_threshold_effect(predictions: Predictions, ax: Axes | None = None) -> Axes:
    """Accuracy and relative cost as one threshold for all early exits moves."""
    ax = ax or new_axes()
    curve = accuracy_cost_curve(predictions, _THRESHOLDS)
    ax.plot(_THRESHOLDS, curve.accuracy.numpy(), label="accuracy")
    ax.plot(_THRESHOLDS, curve.relative_cost.numpy(), label="cost")
    _over_thresholds(ax)
    ax.set(ylabel="share of images, of cost", title="What it costs and buys")
    ax.legend(fontsize=9)
    return ax


def plot_policies(families: Mapping[str, Sequence[Decisions]], ax: Axes | None = None) -> Axes:
    """Accuracy against cost of several policy families on one network, one line per family."""
    ax = ax or new_axes()
    looks = zip(cycle(sns.color_palette("colorblind")), cycle("os^vDPX*"))
    for (name, decisions), (color, marker) in zip(families.items(), looks, strict=False):
        points = sorted((each.relative_cost, 100 * each.accuracy) for each in decisions)
        ax.plot(*zip(*points, strict=True), marker=marker, markersize=6, linewidth=1, color=color, label=name)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="mean cost, as a share of the whole network's", ylabel="accuracy (%)", title="Rules for leaving")
    ax.legend(fontsize=8, loc="lower right")
    return ax


def _over_thresholds(ax: Axes) -> None:
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="threshold on confidence", xlim=(0, 1), ylim=(0, 1))
