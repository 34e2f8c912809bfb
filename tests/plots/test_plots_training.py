"""Figures of training, read back from the axes."""

import pytest
import torch
from matplotlib.colors import to_rgb
from seaborn.utils import relative_luminance

from eeutils import plots
from eeutils.plots.style import exit_colors
from eeutils.training import History


def test_losses_of_networks_are_the_sum_or_the_last_exit(history):
    summed, last = plots.plot_losses({"net": history}), plots.plot_losses({"net": history}, last_exit=True)

    assert summed.lines[0].get_ydata().tolist() == [2.0, 1.0, pytest.approx(2 / 3)]
    assert last.lines[0].get_ydata().tolist() == [1.0, 0.5, pytest.approx(1 / 3)]


def test_exits_have_the_colours_of_the_exit_rates(history):
    lines = [line.get_color() for line in plots.plot_validation(history).lines]

    bars = plots.plot_exit_rates({"all": torch.tensor([0.5, 0.5])}).patches
    assert [to_rgb(color) for color in lines] == [to_rgb(bar.get_facecolor()) for bar in bars]


@pytest.mark.parametrize(
    "plot", [plots.plot_exit_losses, plots.plot_validation, lambda each: plots.plot_losses({"net": each})]
)
def test_epochs_are_counted_in_whole_numbers(plot, history):
    ax = plot(history)
    ax.set_xlim(0.8, 3.2)  # where matplotlib's own ticks would stand at 1, 1.5, 2, ...

    assert [tick % 1 for tick in ax.get_xticks()] == [0] * len(ax.get_xticks())


def test_neighbours_among_three_exits_can_be_told_apart_without_colour():
    pale, middle, dark = (relative_luminance(color) + 0.05 for color in exit_colors(3))

    assert min(pale / middle, middle / dark) > 2


def test_one_network_has_a_line_for_each_exit(history):
    losses, accuracies = plots.plot_exit_losses(history), plots.plot_validation(history)

    assert [line.get_label() for line in losses.lines] == ["exit 1", "last exit"]
    assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("plot", "column"),
    [
        (plots.plot_exit_losses, "train_loss"),
        (plots.plot_validation, "val_accuracy"),
        (lambda history: plots.plot_losses({"net": history}, last_exit=True), "train_loss"),
    ],
)
def test_columns_that_a_history_lacks_are_named(plot, column):
    with pytest.raises(ValueError, match=rf"{column}_exit1, .*\['train_loss'\]"):
        plot(History(({"epoch": 1, "train_loss": 1.0},)))
