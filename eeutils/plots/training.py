"""Figures of training histories."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from eeutils.errors import require
from eeutils.plots.style import exit_colors, exit_name, network_looks, new_axes
from eeutils.training.history import History


def plot_losses(histories: Mapping[str, History], ax: Axes | None = None, *, last_exit: bool = False) -> Axes:
    """Training loss of several networks by epoch: the weighted sum over exits, or the last exit's."""
    ax = ax or new_axes()
    frames = {name: history.frame() for name, history in histories.items()}
    exits = {name: sum("val_accuracy_exit" in column for column in frame) for name, frame in frames.items()}
    looks = network_looks({name: max(1, count) for name, count in exits.items()})
    for name, frame in frames.items():
        color, line = looks[name]
        losses = frame[_exit_columns(frame, "train_loss")[-1] if last_exit else "train_loss"]
        ax.plot(frame.index, losses, line, color=color, label=name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = "Loss of the last exit" if last_exit else "Weighted sum of the exits' losses"
    ax.set(xlabel="epoch", ylabel="training loss", title=title)
    ax.legend(fontsize=8)
    return ax


def plot_exit_losses(history: History, ax: Axes | None = None) -> Axes:
    """Training loss of every exit of one network by epoch."""
    ax = _plot_by_exit(history, "train_loss", ax)
    ax.set(xlabel="epoch", ylabel="training loss", title="Training loss of each exit")
    return ax


def plot_validation(history: History, ax: Axes | None = None) -> Axes:
    """Validation accuracy of every exit of one network by epoch."""
    ax = _plot_by_exit(history, "val_accuracy", ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="epoch", ylabel="validation accuracy", title="Validation accuracy of each exit")
    return ax


def _plot_by_exit(history: History, column: str, ax: Axes | None) -> Axes:
    frame = history.frame()
    columns = _exit_columns(frame, column)
    ax = ax or new_axes()
    for index, (name, color) in enumerate(zip(columns, exit_colors(len(columns)), strict=True)):
        label = exit_name(index, len(columns))
        ax.plot(frame.index, frame[name], marker="o", markersize=3, color=color, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def _exit_columns(frame: pd.DataFrame, column: str) -> list[str]:
    columns = [name for name in frame if name.startswith(f"{column}_exit")]
    require(bool(columns), f"history must have columns {column}_exit1, {column}_exit2, ..., got {list(frame)}")
    return columns
