"""Figures of overthinking, read back from the axes."""

import matplotlib.pyplot as plt
import pytest
import torch

from eeutils import plots
from eeutils.analysis.overthinking import destructive, wasteful
from eeutils.analysis.predictions import Predictions


@pytest.fixture
def three_exits() -> Predictions:
    """Six images as in the fixture `split` (classes a b c a b a): right at 1+2+3, 1, 2, 2+3, 3, nowhere."""
    answers = torch.tensor([[0, 1, 0, 1, 0, 1], [0, 2, 2, 0, 0, 1], [0, 2, 0, 0, 1, 1]])
    sure = torch.tensor([[5, 3, 1, 1, 1, 1], [5, 1, 2, 3, 1, 1], [5, 2, 4, 3, 2, 1]])[..., None]
    logits = sure * torch.nn.functional.one_hot(answers, 3).float()
    return Predictions(logits, torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([1.0, 2, 4], dtype=torch.float64))


@pytest.fixture
def faultless(three_exits) -> Predictions:
    return three_exits.take(torch.tensor([0, 3]))


def test_bars_stack_what_was_known_and_what_is_new_and_dots_are_the_exits_themselves(three_exits):
    ax = plots.plot_first_correct(wasteful(three_exits))

    known, new = (list(bars) for bars in ax.containers)
    assert [bar.get_height() for bar in known] == [0, 2, 4]
    assert [(bar.get_y(), bar.get_height()) for bar in new] == [(0, 2), (2, 2), (4, 1)]
    assert ax.lines[0].get_ydata().tolist() == [2, 3, 3]


def test_shares_have_a_line_a_name(three_exits):
    ax = plots.plot_shares_by_exit({"clean": torch.tensor([0.5, 0.75]), "stamped": torch.tensor([0.25, 0.0])})

    assert [line.get_label() for line in ax.lines] == ["clean", "stamped"]
    assert ax.lines[1].get_ydata().tolist() == [0.25, 0.0]


def test_classes_with_mistakes_have_a_bar_from_low_to_high_and_the_others_none(three_exits):
    ax = plots.plot_destructive_by_class(destructive(three_exits), ("a", "b", "c"))

    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (1)", "b (1)", "c (1)"]
    assert [bar.get_width() for bar in ax.patches] == [0, 1, 1]
    right_at_b = three_exits.take(torch.tensor([0, 2, 4, 5]))
    ax = plots.plot_destructive_by_class(destructive(right_at_b), ("a", "b", "c"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (1)", "c (1)"]
    assert ax.get_title() == "All classes (dashed): 50% of 2"


def test_whiskers_are_the_interval():
    labels = torch.zeros(100, dtype=torch.int64)
    answers = torch.stack([torch.arange(100) >= 60, torch.arange(100) >= 0]).long()  # 60 destroyed, 40 wrong throughout
    logits = 3.0 * torch.nn.functional.one_hot(answers, 2).float()
    effect = destructive(Predictions(logits, labels, torch.tensor([1.0, 2.0]).double()))

    ax = plots.plot_destructive_by_class(effect, ("a", "b"))

    whisker = ax.collections[0].get_segments()[0]
    assert whisker[:, 0].tolist() == pytest.approx(effect.class_intervals()[0].tolist())


def test_confidence_of_lost_answers_on_both_sides(three_exits):
    effect = destructive(three_exits)
    ax = plots.plot_destructive_confidence(effect)

    right, wrong = (stairs.get_data().values for stairs in ax.patches)
    assert sum(right) == sum(wrong) == 2
    assert ax.get_title().startswith("2 right answers")
    assert f"mean {effect.last_confidence.mean():.2f}" in ax.get_legend().get_texts()[1].get_text()


def test_each_row_shows_what_its_exit_is_the_first_to_get_right_surest_first(split, three_exits):
    figure = plots.plot_images_by_exit(split, three_exits, columns=2)

    shown = [[int(ax.images[0].get_array()[0, 0, 0]) for ax in row if ax.images] for row in _rows(figure, 2)]
    assert shown == [[0, 1], [3, 2], [4]]
    assert [row[0].get_ylabel() for row in _rows(figure, 2)] == [
        "exit 1\n2 new",
        "exit 2\n2 new",
        "last exit\n1 new",
    ]


def test_rows_can_be_chosen(split, three_exits):
    figure = plots.plot_images_by_exit(split, three_exits, columns=3, exits=[2])

    assert len(figure.axes) == 3
    assert int(figure.axes[0].images[0].get_array()[0, 0, 0]) == 4


def test_nothing_lost_can_be_drawn_too(split, faultless):
    effect = destructive(faultless)

    assert not plots.plot_destructive_by_class(effect, ("a", "b", "c")).patches
    assert "0 right answers" in plots.plot_destructive_confidence(effect).get_title()
    figure = plots.plot_images_by_exit(split.take(torch.tensor([0, 3])), faultless, columns=2)
    assert not any(ax.images for ax in _rows(figure, 2)[2])


def test_a_plot_draws_on_the_axes_it_is_given(three_exits):
    ax = plt.subplots()[1]

    assert plots.plot_first_correct(wasteful(three_exits), ax) is ax


def _rows(figure: plt.Figure, columns: int) -> list[list[plt.Axes]]:
    return [figure.axes[start : start + columns] for start in range(0, len(figure.axes), columns)]
