"""Figures of overthinking and of confusion, which indicates it."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from eeutils.analysis.confusion import ErrorIndicator
from eeutils.analysis.overthinking import Destructive, Wasteful, first_correct_at
from eeutils.analysis.predictions import Predictions
from eeutils.data import Split
from eeutils.plots.style import WRONG, draw_image, draw_right_and_wrong, exit_name, legend_below, log_shares, new_axes


def plot_first_correct(effect: Wasteful, ax: Axes | None = None) -> Axes:
    """Images classified correctly by this exit or an earlier one (bars), and by each exit alone (dots).

    The upper part of a bar shows those that no earlier exit had. A dot below the top of its bar is an exit that
    loses what earlier ones knew.
    """
    ax = ax or new_axes()
    names = [exit_name(index, len(effect.costs)) for index in range(len(effect.costs))]
    known, new = effect.cumulative - effect.unique, effect.unique
    pale, strong = sns.color_palette("crest", 2)
    ax.bar(names, known.numpy(), color=pale, label="an earlier exit has it right")
    drawn = ax.bar(names, new.numpy(), bottom=known.numpy(), color=strong, label="this one is the first")
    ax.bar_label(drawn, [f"+{count:,}" for count in new.tolist()], fontsize=8, padding=6)  # above the dot
    ax.plot(names, effect.correct.numpy(), "o", color="black", markersize=5, label="right at this exit")
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="images", ylim=(0, 1.08 * max(1, int(effect.cumulative[-1]))), title="Images answered rightly so far")
    legend_below(ax)
    return ax


def plot_shares_by_exit(shares: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """One line per name: a share (E,), 0 to 1, at each exit."""
    ax = ax or new_axes()
    for name, values in shares.items():
        names = [exit_name(index, len(values)) for index in range(len(values))]
        ax.plot(names, values.numpy(), marker="o", markersize=4, label=name)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(axis="x", labelsize=9)
    ax.legend(fontsize=9)
    return ax


def plot_destructive_by_class(effect: Destructive, classes: Sequence[str], ax: Axes | None = None) -> Axes:
    """Share of the last exit's mistakes on each class that an earlier exit classified correctly, with 95 % intervals.

    Classes on which the last exit makes no mistake have no bar; the line is the share over all classes.
    """
    ax = ax or new_axes()
    rows = effect.class_table(classes)
    rows = rows[rows["wrong at last"] > 0].sort_values("share")
    # The bootstrap's quantiles of few images can miss the share itself by a rounding.
    reach = [(rows["share"] - rows["low"]).clip(lower=0), (rows["high"] - rows["share"]).clip(lower=0)]
    names = [f"{name} ({count})" for name, count in rows["wrong at last"].items()]
    ax.barh(names, rows["share"], xerr=reach, color=WRONG, alpha=0.75, error_kw={"capsize": 3, "linewidth": 1})
    if effect.num_wrong:
        ax.axvline(effect.share, color="black", linewidth=1, linestyle="--")
        ax.set_title(f"All classes (dashed): {effect.share:.0%} of {effect.num_wrong:,}")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="y", visible=False)
    ax.set(xlim=(0, 1.02), xlabel="share of the mistakes (in brackets: how many) that an earlier exit had right")
    return ax


def plot_destructive_confidence(effect: Destructive, ax: Axes | None = None) -> Axes:
    """Confidence of the first correct exit and of the last exit on destructive mistakes."""
    ax = ax or new_axes()
    edges = np.linspace(0, 1, 21)
    first, last = (
        # Without images there is no mean to name.
        (f"{label} (mean {sure.mean():.2f})" if len(sure) else label, np.histogram(sure.numpy(), edges)[0])
        for label, sure in (("first right exit", effect.confidence), ("last exit, wrong", effect.last_confidence))
    )
    draw_right_and_wrong(ax, edges, first, last)
    ax.set(xlabel="confidence", ylabel="images", title=f"{len(effect.images):,} right answers that were lost")
    legend_below(ax, offset=-0.2)
    return ax


def plot_images_by_exit(split: Split, predictions: Predictions, columns: int = 12) -> plt.Figure:
    """One row per exit: the `columns` most confident images of `split` that it is the first to classify correctly."""
    num_exits = predictions.num_exits
    figure, axes = plt.subplots(num_exits, columns, figsize=(0.75 * columns + 1, 0.85 * num_exits), squeeze=False)
    for exit_index, row in enumerate(axes):
        positions = first_correct_at(predictions, exit_index)
        name = f"{exit_name(exit_index, num_exits)}\n{len(positions):,} new"
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            for spine in ax.spines.values():
                spine.set_visible(False)
        for ax, position in zip(row, positions.tolist(), strict=False):
            draw_image(ax, split.images[position])
    figure.tight_layout(pad=0.3)
    return figure


def plot_suspicion(indicator: ErrorIndicator, ax: Axes | None = None) -> Axes:
    """Histograms of suspicion for right and wrong answers, each normalised by itself, on a log axis.

    Wrong answers are few: counts would hide them behind the right ones.
    """
    ax = ax or new_axes()
    right, wrong = (
        (f"{label} ({int(counts.sum()):,})", counts / counts.sum())
        for label, counts in (("right", indicator.right), ("wrong", indicator.wrong))
    )
    draw_right_and_wrong(ax, indicator.edges, right, wrong)
    log_shares(ax)
    ax.set(ylabel="share of the right /\nof the wrong answers", title=f"AUROC {indicator.auroc:.3f}")
    ax.legend(loc="upper right")
    return ax


def plot_risk_coverage(indicators: Mapping[str, ErrorIndicator], ax: Axes | None = None) -> Axes:
    """Error rate of the answers kept, least suspect first, and the best possible curve (dotted)."""
    ax = ax or new_axes()
    for (name, indicator), color in zip(indicators.items(), cycle(sns.color_palette("colorblind"))):
        coverage = indicator.coverage.numpy()
        label = f"{name} (AURC {100 * indicator.aurc:.2f} %)"
        ax.plot(coverage, 100 * indicator.risk.numpy(), color=color, label=label)
        ax.plot(coverage, 100 * indicator.best_risk.numpy(), ":", color=color, linewidth=1)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="share of the answers kept", ylabel="wrong ones among them (%)")
    ax.legend(fontsize=8, loc="upper left")
    return ax
