"""Figures of exits, read back from the axes."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from eeutils import plots
from eeutils.analysis.predictions import Predictions


def test_accuracies_are_bars_in_percent(two_exits):
    ax = plots.plot_accuracies({"net": two_exits})

    assert [bar.get_width() for bar in ax.patches] == [50.0, 75.0]


def test_gains_are_green_above_the_reference_and_red_below(two_exits):
    ax = plots.plot_gains({"net": two_exits}, reference=0.6)

    assert [bar.get_width() for bar in ax.patches] == pytest.approx([-10.0, 15.0])
    assert [bar.get_facecolor() for bar in ax.patches] == [
        matplotlib.colors.to_rgba(color) for color in (plots.BELOW, plots.ABOVE)
    ]


def test_curves_end_at_the_single_exits_and_a_plain_network_is_a_star(two_exits):
    plain = Predictions(two_exits.logits[1:], two_exits.labels, two_exits.costs[1:])
    ax = plots.plot_curves({"two": two_exits, "plain": plain})

    curve, exits, star = ax.lines
    assert curve.get_xdata().min() == 1.0
    assert list(zip(exits.get_xdata(), exits.get_ydata(), strict=True)) == [(1.0, 50.0), (2.0, 75.0)]
    assert (star.get_marker(), star.get_xdata().tolist()) == ("*", [2.0])


def test_confidence_counts_right_and_wrong(two_exits):
    ax = plots.plot_confidence(two_exits, 0)

    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(2), "all of the right ones and all of the wrong"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (50.0%)", "wrong (50.0%)"]


def test_exit_rates_fill_their_row(two_exits):
    ax = plots.plot_exit_rates({"all": torch.tensor([0.75, 0.25])})

    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]


@pytest.mark.parametrize(("index", "count", "name"), [(0, 1, "classifier"), (0, 3, "exit 1"), (2, 3, "last exit")])
def test_exits_have_names(index, count, name):
    assert plots.exit_name(index, count) == name


def test_a_plot_draws_on_the_axes_it_is_given(two_exits):
    ax = plt.subplots()[1]

    assert plots.plot_confidence(two_exits, 1, ax) is ax
