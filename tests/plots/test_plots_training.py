"""Figures of training, read back from the axes."""

import pytest
import torch
from matplotlib.colors import to_rgb

from eeutils import plots


def test_losses_of_networks_are_the_sum_or_the_last_exit(history):
    summed, last = plots.plot_losses({"net": history}), plots.plot_losses({"net": history}, last_exit=True)

    assert summed.lines[0].get_ydata().tolist() == [2.0, 1.0, pytest.approx(2 / 3)]
    assert last.lines[0].get_ydata().tolist() == [1.0, 0.5, pytest.approx(1 / 3)]


def test_exits_have_the_colours_of_the_exit_rates(history):
    lines = [line.get_color() for line in plots.plot_validation(history).lines]

    bars = plots.plot_exit_rates({"all": torch.tensor([0.5, 0.5])}).patches
    assert [to_rgb(color) for color in lines] == [to_rgb(bar.get_facecolor()) for bar in bars]


def test_one_network_has_a_line_for_each_exit(history):
    losses, accuracies = plots.plot_exit_losses(history), plots.plot_validation(history)

    assert [line.get_label() for line in losses.lines] == ["exit 1", "last exit"]
    assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6])
