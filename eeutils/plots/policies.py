"""Figures of exit policies."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from eeutils.analysis.decisions import Decisions
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import accuracy_cost_curve, exit_rates_at
from eeutils.plots.style import exit_colors, exit_name, new_axes

_THRESHOLDS = np.linspace(0, 1, 501)


def plot_exit_rates_by_threshold(predictions: Predictions, ax: Axes | None = None, score: str = "confidence") -> Axes:
    """Exit rates, stacked, as one threshold for all early exits moves."""
    ax = ax or new_axes()
    names = [exit_name(index, predictions.num_exits) for index in range(predictions.num_exits)]
    rates = exit_rates_at(predictions, _THRESHOLDS, score).numpy()
    ax.stackplot(_THRESHOLDS, rates.T, labels=names, colors=exit_colors(len(names)), linewidth=0)
    _over_thresholds(ax, score)
    ax.set(ylabel="share of the images", title="Where images leave")
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], names[::-1], fontsize=8, loc="center left")  # in the order of the stack
    return ax


def plot_threshold_effect(predictions: Predictions, ax: Axes | None = None, score: str = "confidence") -> Axes:
    """Accuracy and relative cost as one threshold for all early exits moves."""
    ax = ax or new_axes()
    curve = accuracy_cost_curve(predictions, _THRESHOLDS, score)
    ax.plot(_THRESHOLDS, curve.accuracy.numpy(), label="accuracy")
    ax.plot(_THRESHOLDS, curve.relative_cost.numpy(), label="cost")
    _over_thresholds(ax, score)
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


def _over_thresholds(ax: Axes, score: str) -> None:
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel=f"threshold on {score}", xlim=(0, 1), ylim=(0, 1))
