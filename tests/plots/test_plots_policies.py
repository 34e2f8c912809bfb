"""Figures of rules for leaving, read back from the axes."""

import matplotlib.pyplot as plt
import pytest

from eeutils import plots
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import ThresholdPolicy


def test_exit_rates_are_stacked_up_to_all_images(two_exits):
    ax = plots.plot_exit_rates_by_threshold(two_exits)

    first, last = (area.get_paths()[0].vertices for area in ax.collections)
    assert first[:, 1].max() == 1  # with a threshold of 0 all leave at the first exit
    assert last[:, 1].max() == pytest.approx(1)
    sure = float(two_exits.confidence[0, 0])  # all are equally sure
    stay = last[(last[:, 0] > sure + 0.01) & (last[:, 0] < 1)]
    assert sorted(set(stay[:, 1].round(6).tolist())) == [0, 1]  # above it the last exit takes all
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["last exit", "exit 1"]


def test_accuracy_and_cost_change_at_the_threshold_where_images_stay(two_exits):
    accuracy, cost = plots.plot_threshold_effect(two_exits).lines

    sure = float(two_exits.confidence[0, 0])
    for line, below, above in ((accuracy, 0.5, 0.75), (cost, 0.5, 1.0)):
        values, thresholds = line.get_ydata(), line.get_xdata()
        assert set(values[thresholds < sure - 0.01].tolist()) == {below}
        assert set(values[thresholds > sure + 0.01].tolist()) == {above}


def test_another_score_is_named(two_exits):
    assert plots.plot_exit_rates_by_threshold(two_exits, score="margin").get_xlabel() == "threshold on margin"


def test_a_family_of_rules_is_a_line_from_cheap_to_dear(two_exits):
    leave, stay = (decide(two_exits, ThresholdPolicy(threshold)) for threshold in (0.0, 1.0))
    ax = plots.plot_policies({"both": [stay, leave], "one": [stay]})

    both, one = ax.lines
    assert list(zip(both.get_xdata(), both.get_ydata(), strict=True)) == [(0.5, 50.0), (1.0, 75.0)]
    assert list(zip(one.get_xdata(), one.get_ydata(), strict=True)) == [(1.0, 75.0)]
    assert both.get_marker() != one.get_marker()


def test_rules_are_drawn_on_the_axes_given(two_exits):
    ax = plt.subplots()[1]
    everybody_out = decide(two_exits, ThresholdPolicy(0.0))

    assert plots.plot_exit_rates_by_threshold(two_exits, ax) is ax
    assert plots.plot_threshold_effect(two_exits, ax) is ax
    assert plots.plot_policies({"all leave": [everybody_out]}, ax) is ax
