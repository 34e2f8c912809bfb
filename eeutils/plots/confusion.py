"""Figures of error indicators, such as confusion."""

from collections.abc import Mapping
from itertools import cycle

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from eeutils.analysis.confusion import ErrorIndicator
from eeutils.plots.style import draw_right_and_wrong, log_shares, new_axes


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
        ax.plot(
            coverage, 100 * indicator.risk.numpy(), color=color, label=f"{name} (AURC {100 * indicator.aurc:.2f} %)"
        )
        ax.plot(coverage, 100 * indicator.best_risk.numpy(), ":", color=color, linewidth=1)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="share of the answers kept", ylabel="wrong ones among them (%)")
    ax.legend(fontsize=8, loc="upper left")
    return ax
