"""Figures. Every function draws on the axes it is given, or on new ones, and returns them."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from eeutils.analysis.metrics import accuracy_per_exit, gains
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Curve, accuracy_cost_curve
from eeutils.data import Split
from eeutils.training.history import History

ABOVE, BELOW = "#2a9d5c", "#c8443c"


def use_style() -> None:
    """One look for all figures: light grid, no box, colours that the colour-blind can tell apart."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False, "figure.figsize": (7, 4)}
    )


def exit_name(index: int, num_exits: int) -> str:
    """What figures and tables call an exit: "exit 1", ..., "last exit"; "classifier" if there is only one."""
    if num_exits == 1:
        return "classifier"
    return "last exit" if index == num_exits - 1 else f"exit {index + 1}"


def plot_class_histogram(splits: Mapping[str, Split], ax: Axes | None = None) -> Axes:
    """How many images of each class every split has."""
    ax = ax or _new_axes()
    classes = next(iter(splits.values())).classes
    width = 0.8 / len(splits)
    for number, (name, split) in enumerate(splits.items()):
        counts = split.labels.bincount(minlength=len(classes)).numpy()
        ax.bar(np.arange(len(classes)) + (number + 0.5) * width - 0.4, counts, width, label=f"{name} ({len(split):,})")
    ax.set_xticks(range(len(classes)), classes, rotation=35, ha="right")
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="images", title="Images of each class")
    _legend_below(ax, offset=-0.28)
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
    titles = titles or [split.classes[split.labels[position]] for position in positions]
    rows = max(1, -(-len(positions) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.25) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, position, title in zip(axes.flat, positions, titles, strict=False):
        ax.imshow(split.images[position].permute(1, 2, 0).numpy(), interpolation="nearest", cmap="gray")
        ax.set_title(title, fontsize=7 * size**0.5, pad=2)
    figure.tight_layout(pad=0.3)
    return figure


def plot_embedding(points: np.ndarray, split: Split, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Points in the plane (N, 2), one an image of `split`, coloured by class."""
    ax = ax or _new_axes()
    for number, name in enumerate(split.classes):
        chosen = points[(split.labels == number).numpy()]
        ax.scatter(
            chosen[:, 0], chosen[:, 1], s=5, alpha=0.7, color=sns.color_palette("tab10")[number % 10], label=name
        )
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    if legend:
        ax.legend(markerscale=3, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_losses(histories: Mapping[str, History], ax: Axes | None = None, *, last_exit: bool = False) -> Axes:
    """Training loss of several networks by epoch: the weighted sum of their exits', or that of their last exit."""
    ax = ax or _new_axes()
    for name, history in histories.items():
        frame = history.frame()
        ax.plot(frame.index, frame[_exit_columns(frame, "train_loss")[-1] if last_exit else "train_loss"], label=name)
    title = "Loss of the last exit" if last_exit else "Weighted sum of the exits' losses"
    ax.set(xlabel="epoch", ylabel="training loss", title=title)
    ax.legend(fontsize=8, frameon=False)
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


def plot_accuracies(networks: Mapping[str, Predictions], ax: Axes | None = None) -> Axes:
    """Accuracy of every exit of every network, as bars with their values."""
    ax = ax or _new_axes()
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
    ax = ax or _new_axes()
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
    ax = ax or _new_axes()
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
    """How sure an exit is where it is right, and where it is wrong."""
    ax = ax or _new_axes()
    correct, sure = predictions.correct[exit_index], predictions.confidence[exit_index]
    for label, chosen, color in (("right", correct, ABOVE), ("wrong", ~correct, BELOW)):
        share = f"{label} ({float(chosen.double().mean()):.1%})"
        ax.hist(sure[chosen].numpy(), bins=np.linspace(0, 1, 41), alpha=0.65, color=color, label=share)
    ax.set(xlabel="confidence", ylabel="images", title=exit_name(exit_index, predictions.num_exits))
    ax.legend(frameon=False)
    return ax


def plot_exit_rates(rates: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Where images leave: for each row (a class, a threshold) the share (E,) that each exit takes, stacked."""
    ax = ax or _new_axes()
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
    _legend_below(ax)
    return ax


def _plot_by_exit(history: History, column: str, ax: Axes | None) -> Axes:
    ax = ax or _new_axes()
    frame = history.frame()
    columns = _exit_columns(frame, column)
    for index, name in enumerate(columns):
        ax.plot(frame.index, frame[name], marker="o", markersize=3, label=exit_name(index, len(columns)))
    ax.legend(frameon=False)
    return ax


def _exit_columns(frame: pd.DataFrame, column: str) -> list[str]:
    return [name for name in frame if name.startswith(f"{column}_exit")]


def _legend_below(ax: Axes, offset: float = -0.18) -> None:
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, offset), ncols=len(handles))


def _new_axes() -> Axes:
    return plt.subplots()[1]
