"""Figures: what they show, read back from the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from eeutils import plots
from eeutils.analysis.predictions import Predictions
from eeutils.data import Normalization, Split
from eeutils.training import History


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def split() -> Split:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4).contiguous()
    return Split(images, torch.tensor([0, 1, 2, 0, 1, 0]), ("a", "b", "c"), Normalization((0.5,) * 3, (0.2,) * 3))


@pytest.fixture
def two_exits() -> Predictions:
    answers = torch.tensor([[0, 1, 0, 0], [0, 1, 2, 0]])
    logits = 2.0 * torch.nn.functional.one_hot(answers, 3).float()
    return Predictions(logits, torch.tensor([0, 1, 2, 2]), torch.tensor([1e6, 2e6], dtype=torch.float64))


@pytest.fixture
def history() -> History:
    rows = [
        {"epoch": epoch, "train_loss": 2.0 / epoch, "train_loss_exit1": 3.0 / epoch, "train_loss_exit2": 1.0 / epoch}
        | {"val_accuracy_exit1": 0.1 * epoch, "val_accuracy_exit2": 0.2 * epoch}
        for epoch in (1, 2, 3)
    ]
    return History(tuple(rows))


def test_the_histogram_has_a_bar_for_each_class_of_each_split(split):
    ax = plots.plot_class_histogram({"train": split, "test": split.take(slice(0, 3))})

    assert [bar.get_height() for bar in ax.patches] == [3, 2, 1, 1, 1, 1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_images_stand_in_order_under_their_class(split):
    figure = plots.plot_images(split, [4, 0], columns=3)

    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["b", "a"]
    assert [int(ax.images[0].get_array()[0, 0, 0]) for ax in shown] == [4, 0]


def test_no_images_give_an_empty_grid_and_no_error(split):
    assert not any(ax.images for ax in plots.plot_images(split, torch.tensor([], dtype=torch.int64)).axes)


def test_an_embedding_colours_every_class(split):
    ax = plots.plot_embedding(np.arange(12.0).reshape(6, 2), split)

    assert [len(points.get_offsets()) for points in ax.collections] == [3, 2, 1]


def test_losses_of_networks_are_the_sum_or_the_last_exit(history):
    summed, last = plots.plot_losses({"net": history}), plots.plot_losses({"net": history}, last_exit=True)

    assert summed.lines[0].get_ydata().tolist() == [2.0, 1.0, pytest.approx(2 / 3)]
    assert last.lines[0].get_ydata().tolist() == [1.0, 0.5, pytest.approx(1 / 3)]


def test_one_network_has_a_line_for_each_exit(history):
    losses, accuracies = plots.plot_exit_losses(history), plots.plot_validation(history)

    assert [line.get_label() for line in losses.lines] == ["exit 1", "last exit"]
    assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_accuracies_are_bars_in_percent(two_exits):
    ax = plots.plot_accuracies({"net": two_exits})

    assert [bar.get_width() for bar in ax.patches] == [50.0, 75.0]


def test_gains_are_green_above_the_reference_and_red_below(two_exits):
    ax = plots.plot_gains({"net": two_exits}, reference=0.6)

    assert [bar.get_width() for bar in ax.patches] == pytest.approx([-10.0, 15.0])
    assert [bar.get_facecolor() for bar in ax.patches] == [
        plots.plt.matplotlib.colors.to_rgba(color) for color in (plots.BELOW, plots.ABOVE)
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

    assert sum(bar.get_height() for bar in ax.patches) == 4
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
