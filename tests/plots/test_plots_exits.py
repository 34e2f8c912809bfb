"""Figures of exits, read back from the axes."""

from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from eeutils import plots
from eeutils.analysis.costs import NetworkCosts
from eeutils.analysis.predictions import Predictions
from eeutils.plots.style import network_looks


def test_accuracies_are_bars_in_percent_from_zero(two_exits):
    ax = plots.plot_accuracies({"net": two_exits})

    assert [bar.get_width() for bar in ax.patches] == [50.0, 75.0]
    assert ax.get_xlim()[0] == 0
    assert ax.get_title()


def test_gains_are_blue_above_the_reference_and_orange_below(two_exits):
    ax = plots.plot_gains({"net": two_exits}, reference=0.6)

    assert [bar.get_width() for bar in ax.patches] == pytest.approx([-10.0, 15.0])
    assert [bar.get_facecolor() for bar in ax.patches] == [
        matplotlib.colors.to_rgba(color) for color in (plots.BELOW, plots.ABOVE)
    ]
    assert ax.get_xlabel() == "points above or below the plain network (60.00 %)"
    assert ax.get_title()


def test_a_reference_may_have_another_name(two_exits):
    ax = plots.plot_gains({"net": two_exits}, reference=0.6, reference_name="guessing")

    assert ax.get_xlabel() == "points above or below guessing (60.00 %)"


def test_curves_end_at_the_single_exits_and_a_plain_network_is_a_star(two_exits):
    plain = Predictions(two_exits.logits[1:], two_exits.labels, two_exits.costs[1:])
    ax = plots.plot_curves({"two": two_exits, "plain": plain})

    curve, exits, star = ax.lines
    assert curve.get_xdata().min() == 1.0
    assert list(zip(exits.get_xdata(), exits.get_ydata(), strict=True)) == [(1.0, 50.0), (2.0, 75.0)]
    assert (star.get_marker(), star.get_xdata().tolist()) == ("*", [2.0])


def test_curves_of_seconds_say_so(two_exits):
    seconds = replace(two_exits, costs=torch.tensor([0.001, 0.004]).double())
    ax = plots.plot_curves({"two": seconds}, unit=plots.MILLISECONDS)

    assert ax.get_xlabel() == "mean milliseconds an image"
    assert ax.lines[1].get_xdata().tolist() == pytest.approx([1.0, 4.0])
    assert ax.lines[0].get_xdata().max() <= 4.0 + 1e-6


def test_confidence_counts_right_and_wrong(two_exits):
    ax = plots.plot_confidence(two_exits, 0)

    assert [stairs.get_data().values.sum() for stairs in ax.patches] == pytest.approx([1, 1]), "each kind is whole"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (50.0%)", "wrong (50.0%)"]


def test_right_answers_are_filled_in_blue_and_wrong_ones_an_orange_outline(two_exits):
    right, wrong = plots.plot_confidence(two_exits, 0).patches

    assert (right.get_fill(), wrong.get_fill()) == (True, False)
    assert matplotlib.colors.same_color(right.get_facecolor()[:3], plots.RIGHT)
    assert matplotlib.colors.same_color(wrong.get_edgecolor(), plots.WRONG)


def test_an_exit_that_is_never_wrong_can_be_drawn(two_exits):
    ax = plots.plot_confidence(two_exits.take(torch.tensor([0, 1])), 0)

    assert [stairs.get_data().values.sum() for stairs in ax.patches] == pytest.approx([1, 0])


def test_exits_stand_at_their_share_of_the_cost_above_the_unit_they_follow():
    cost = NetworkCosts(
        unit_macs=torch.tensor([3.0, 5.0]).double(),
        exit_macs=torch.tensor([1.0, 1.0]).double(),
        unit_params=torch.tensor([1, 1]),
        exit_params=torch.tensor([1, 1]),
        exit_after=(0, 1),
    )
    ax = plots.plot_exit_places({"net": cost}, asked=(0.3,))

    exits, asked = ax.lines
    assert exits.get_xdata() == pytest.approx([0.4, 1.0])
    assert asked.get_xdata() == [0.3, 0.3]
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["net"]


def test_numbers_are_black_on_light_bars_and_white_on_dark_ones():
    ax = plots.plot_exit_rates({"all": torch.full((7,), 1 / 7)})

    assert [text.get_color() for text in ax.texts[::6]] == ["black", "white"]


def test_exit_rates_fill_their_row(two_exits):
    ax = plots.plot_exit_rates({"all": torch.tensor([0.75, 0.25])})

    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]


def test_rows_of_different_numbers_of_exits_cannot_be_stacked():
    with pytest.raises(ValueError, match=r"\{'two': 2, 'three': 3\}"):
        plots.plot_exit_rates({"two": torch.full((2,), 1 / 2), "three": torch.full((3,), 1 / 3)})


@pytest.mark.parametrize(("index", "count", "name"), [(0, 1, "classifier"), (0, 3, "exit 1"), (2, 3, "last exit")])
def test_exits_have_names(index, count, name):
    assert plots.exit_name(index, count) == name


def test_a_plot_draws_on_the_axes_it_is_given(two_exits):
    ax = plt.subplots()[1]

    assert plots.plot_confidence(two_exits, 1, ax) is ax


def test_looks_tell_pooling_by_colour_and_exits_by_line():
    looks = network_looks({"resnet18-avg": 1, "resnet18_2exits-spp": 2, "resnet18_3exits-spp": 3})

    (plain, dotted), (two, dashed), (three, solid) = looks.values()
    assert two == three != plain
    assert (dotted, dashed, solid) == (":", "--", "-")


@pytest.mark.parametrize("names", [("resnet18-spp-w16", "resnet18-spp-w32"), ("added", "together")])
def test_looks_of_networks_alike_have_different_colours(names):
    first, second = network_looks(dict.fromkeys(names, 3)).values()

    assert first != second


def test_gains_leave_out_first_exits_if_asked(two_exits):
    ax = plots.plot_gains({"net": two_exits}, reference=0.6, first_exits=False)

    assert [bar.get_width() for bar in ax.patches] == pytest.approx([15.0])
