"""Figures of error indicators, read back from the axes."""

import matplotlib.pyplot as plt
import pytest
import torch

from eeutils import plots
from eeutils.analysis.confusion import ErrorIndicator, error_indicator


@pytest.fixture
def indicator() -> ErrorIndicator:
    suspicion = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0])
    return error_indicator(suspicion, torch.tensor([False, False, True, False, True]), bins=2)


def test_suspicion_is_drawn_as_shares_of_the_right_and_of_the_wrong_answers(indicator):
    ax = plots.plot_suspicion(indicator)

    right, wrong = (patch.get_data() for patch in ax.patches)
    assert right.values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert wrong.values.tolist() == pytest.approx([1 / 2, 1 / 2])
    assert right.edges.tolist() == [0, 0.5, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (3)", "wrong (2)"]


def test_risk_is_drawn_over_coverage_above_the_best_there_is(indicator):
    ax = plots.plot_risk_coverage({"one": indicator, "other": indicator})

    assert len(ax.lines) == 4
    risk, best = ax.lines[:2]
    assert risk.get_xdata().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert risk.get_ydata().tolist() == pytest.approx([0, 0, 100 / 3, 25, 40])
    assert best.get_ydata().tolist() == pytest.approx([0, 0, 0, 25, 40])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [f"{name} (AURC {100 * indicator.aurc:.2f} %)" for name in ("one", "other")]


def test_indicators_are_drawn_on_the_axes_given(indicator):
    ax = plt.subplots()[1]

    assert plots.plot_suspicion(indicator, ax) is ax
    assert plots.plot_risk_coverage({"one": indicator}, ax) is ax
