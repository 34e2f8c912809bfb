from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from eeutils import Predictions, ThresholdPolicy, create_model, decide, plots
from eeutils.analysis import Explanation, NetworkCosts, destructive, error_indicator, measure_costs, wasteful
from eeutils.data import Normalization, Split
from eeutils.plots.style import network_looks
from eeutils.training import History
from tests.analysis.tables import answering

HISTORY = History(
    tuple(
        {"epoch": epoch, "train_loss": 2.0 / epoch, "train_loss_exit1": 3.0 / epoch, "train_loss_exit2": 1.0 / epoch}
        | {"val_accuracy_exit1": 0.1 * epoch, "val_accuracy_exit2": 0.2 * epoch}
        for epoch in (1, 2, 3)
    )
)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def split() -> Split:
    """Six images, each of one grey, its number."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4).contiguous()
    return Split(images, torch.tensor([0, 1, 2, 0, 1, 0]), ("a", "b", "c"), Normalization((0.5,) * 3, (0.2,) * 3))


@pytest.fixture
def two_exits() -> Predictions:
    return answering([[0, 1, 0, 0], [0, 1, 2, 0]], [0, 1, 2, 2], [1e6, 2e6])


@pytest.fixture
def three_exits() -> Predictions:
    """On the images of `split`: right at 1+2+3, 1, 2, 2+3, 3, nowhere."""
    answers = [[0, 1, 0, 1, 0, 1], [0, 2, 2, 0, 0, 1], [0, 2, 0, 0, 1, 1]]
    costs = [1e6, 2e6, 4e6]
    return answering(answers, [0, 1, 2, 0, 1, 0], costs, [[5, 3, 1, 1, 1, 1], [5, 1, 2, 3, 1, 1], [5, 2, 4, 3, 2, 1]])


def shown_in(axes: list[plt.Axes]) -> list[int]:
    """Numbers of the images drawn."""
    return [int(ax.images[0].get_array()[0, 0, 0]) for ax in axes if ax.images]


def points(line: plt.Line2D) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def labels_of(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_plot_class_histogram_has_a_bar_for_each_class_of_each_split(split):
    ax = plots.plot_class_histogram({"train": split, "test": split.take(slice(0, 3))})
    assert [bar.get_height() for bar in ax.patches] == [3, 2, 1, 1, 1, 1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_plot_images_draws_them_in_order_under_their_class(split):
    figure = plots.plot_images(split, [4, 0], columns=3)
    assert shown_in(figure.axes) == [4, 0]
    assert [ax.get_title() for ax in figure.axes if ax.images] == ["b", "a"]
    assert shown_in(plots.plot_images(split, []).axes) == []
    with pytest.raises(ValueError, match="'x'"):
        plots.plot_images(split, [0, 1], titles=["x"])


def test_plot_embedding_colours_every_class(split):
    ax = plots.plot_embedding(np.arange(12.0).reshape(6, 2), split)
    assert [len(points.get_offsets()) for points in ax.collections] == [3, 2, 1]


def test_plot_network_shows_units_maps_and_shares():
    net = create_model("resnet18_3exits", width=2)
    shown = [text.get_text() for text in plots.plot_network(net, (3, 32, 32)).texts]
    costs = measure_costs(net, (3, 32, 32)).cumulative_macs
    assert {"exit 1", "exit 2", "last", *map(str, range(len(net.units)))} <= set(shown)
    assert [f"{share:.0%}" for share in (costs / costs[-1]).tolist()] == [text for text in shown if "%" in text]
    assert [text for text in shown if "x" in text and "ch." in text][-1] == "4 x 4\n16 ch."


def test_plot_poolings_counts_values():
    titles = [ax.get_title().split("\n")[1] for ax in plots.plot_poolings(torch.rand(8, 8)).axes]
    assert titles == ["64 values", "1 value", "1 value", "4 values", "16 values"]


def test_plot_shrinking_batch_counts_images():
    table = answering([[0] * 4] * 3, [0] * 4, [1, 2, 4], [[9, 9, 0, 0], [9, 9, 9, 0], [9, 9, 9, 9]])
    ax = plots.plot_shrinking_batch(decide(table, ThresholdPolicy(0.9)), batch_size=4)
    assert [text.get_text() for text in ax.texts] == ["4", "2 leave", "2", "1 leave", "1", "1 leave"]


def test_plot_accuracies_and_gains_draw_bars_in_percent(two_exits):
    assert [bar.get_width() for bar in plots.plot_accuracies({"net": two_exits}).patches] == [50.0, 75.0]
    bars = plots.plot_gains({"net": two_exits}, reference=0.6).patches
    assert [bar.get_width() for bar in bars] == pytest.approx([-10.0, 15.0])
    assert [bar.get_facecolor() for bar in bars] == [to_rgba(color) for color in (plots.BELOW, plots.ABOVE)]


def test_plot_curves_ends_at_the_single_exits_and_draws_a_plain_network_as_a_star(two_exits):
    plain = Predictions(two_exits.logits[1:], two_exits.labels, two_exits.costs[1:])
    curve, exits, star = plots.plot_curves({"two": two_exits, "plain": plain}).lines
    assert curve.get_xdata().min() == 1.0
    assert points(exits) == [(1.0, 50.0), (2.0, 75.0)]
    assert (star.get_marker(), star.get_xdata().tolist()) == ("*", [2.0])


def test_plot_confidence_counts_right_and_wrong_on_the_axes_given(two_exits):
    ax = plt.subplots()[1]
    assert plots.plot_confidence(two_exits, 0, ax) is ax
    assert [stairs.get_data().values.sum() for stairs in ax.patches] == pytest.approx([1, 1])
    assert labels_of(ax) == ["right (50.0%)", "wrong (50.0%)"]


def test_plot_exit_places_shows_shares_of_the_cost_above_units():
    two = torch.ones(2)
    cost = NetworkCosts(torch.tensor([3.0, 5.0]).double(), two.double(), two.long(), two.long(), (0, 1))
    ax = plots.plot_exit_places({"net": cost}, asked=(0.3,))
    exits, asked = ax.lines
    assert exits.get_xdata() == pytest.approx([0.4, 1.0])
    assert asked.get_xdata() == [0.3, 0.3]
    assert [text.get_text() for text in ax.texts] == ["0", "1"]


def test_plot_exit_rates_needs_rows_of_as_many_exits():
    with pytest.raises(ValueError, match="'three': 3"):
        plots.plot_exit_rates({"two": torch.full((2,), 1 / 2), "three": torch.full((3,), 1 / 3)})


def test_network_looks_tell_pooling_by_colour_and_exits_by_line():
    looks = network_looks({"resnet18-avg": 1, "resnet18_2exits-spp": 2, "resnet18_3exits-spp": 3})
    (plain, dotted), (two, dashed), (three, solid) = looks.values()
    assert two == three != plain
    assert (dotted, dashed, solid) == (":", "--", "-")


def test_plot_exit_rates_by_threshold_stacks_up_to_all_images(two_exits):
    first, last = (area.get_paths()[0].vertices for area in plots.plot_exit_rates_by_threshold(two_exits).collections)
    assert first[:, 1].max() == 1  # with a threshold of 0 all leave at the first exit
    assert last[:, 1].max() == pytest.approx(1)
    sure = float(two_exits.confidence[0, 0])  # all are equally sure
    stay = last[(last[:, 0] > sure + 0.01) & (last[:, 0] < 1)]
    assert sorted(set(stay[:, 1].round(6).tolist())) == [0, 1]  # above it the last exit takes all


def test_plot_threshold_effect_changes_where_images_stay(two_exits):
    sure = float(two_exits.confidence[0, 0])
    for line, below, above in zip(plots.plot_threshold_effect(two_exits).lines, (0.5, 0.5), (0.75, 1.0), strict=True):
        values, thresholds = line.get_ydata(), line.get_xdata()
        assert set(values[thresholds < sure - 0.01].tolist()) == {below}
        assert set(values[thresholds > sure + 0.01].tolist()) == {above}


def test_plot_policies_draws_a_family_from_cheap_to_dear(two_exits):
    leave, stay = (decide(two_exits, ThresholdPolicy(threshold)) for threshold in (0.0, 1.0))
    both, one = plots.plot_policies({"both": [stay, leave], "one": [stay]}).lines
    assert points(both) == [(0.5, 50.0), (1.0, 75.0)]
    assert points(one) == [(1.0, 75.0)]
    assert both.get_marker() != one.get_marker()


def test_plot_first_correct_stacks_what_was_known_and_what_is_new(three_exits):
    ax = plots.plot_first_correct(wasteful(three_exits))
    known, new = (list(bars) for bars in ax.containers)
    assert [bar.get_height() for bar in known] == [0, 2, 4]
    assert [(bar.get_y(), bar.get_height()) for bar in new] == [(0, 2), (2, 2), (4, 1)]
    assert ax.lines[0].get_ydata().tolist() == [2, 3, 3]


def test_plot_destructive_by_class_has_bars_for_classes_with_mistakes(three_exits):
    def bars(table: Predictions) -> dict[str, float]:
        ax = plots.plot_destructive_by_class(destructive(table), ("a", "b", "c"))
        names = [label.get_text() for label in ax.get_yticklabels()]
        return dict(zip(names, [bar.get_width() for bar in ax.patches], strict=False))

    assert bars(three_exits) == {"a (1)": 0, "b (1)": 1, "c (1)": 1}
    assert bars(three_exits.take(torch.tensor([0, 2, 4, 5]))) == {"a (1)": 0, "c (1)": 1}
    assert bars(three_exits.take(slice(0, 1))) == {}


def test_plot_destructive_confidence_draws_both_sides_of_lost_answers(three_exits):
    effect = destructive(three_exits)
    ax = plots.plot_destructive_confidence(effect)
    assert [sum(stairs.get_data().values) for stairs in ax.patches] == [2, 2]
    assert f"mean {effect.last_confidence.mean():.2f}" in labels_of(ax)[1]


def test_plot_images_by_exit_shows_what_each_is_the_first_to_get_right(split, three_exits):
    axes = plots.plot_images_by_exit(split, three_exits, columns=2).axes
    assert [shown_in(axes[start : start + 2]) for start in (0, 2, 4)] == [[0, 1], [3, 2], [4]]
    assert [ax.get_ylabel() for ax in axes[::2]] == ["exit 1\n2 new", "exit 2\n2 new", "last exit\n1 new"]


def test_plot_suspicion_and_risk_coverage_draw_an_error_indicator():
    suspicion, wrong = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0]), torch.tensor([False, False, True, False, True])
    indicator = error_indicator(suspicion, wrong, bins=2)
    ax = plots.plot_suspicion(indicator)
    shares = [patch.get_data().values.tolist() for patch in ax.patches]
    assert shares == [pytest.approx([2 / 3, 1 / 3]), pytest.approx([1 / 2, 1 / 2])]
    assert labels_of(ax) == ["right (3)", "wrong (2)"]
    ax = plots.plot_risk_coverage({"one": indicator, "other": indicator})
    risk, best, *others = ax.lines
    assert risk.get_xdata().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert risk.get_ydata().tolist() == pytest.approx([0, 0, 100 / 3, 25, 40])
    assert best.get_ydata().tolist() == pytest.approx([0, 0, 0, 25, 40])
    assert len(others) == len(labels_of(ax)) == 2


def test_plots_of_training_draw_the_columns_they_are_named_after():
    summed, last = (plots.plot_losses({"net": HISTORY}, last_exit=last) for last in (False, True))
    assert summed.lines[0].get_ydata().tolist() == [2.0, 1.0, pytest.approx(2 / 3)]
    assert last.lines[0].get_ydata().tolist() == [1.0, 0.5, pytest.approx(1 / 3)]
    assert [line.get_label() for line in plots.plot_exit_losses(HISTORY).lines] == ["exit 1", "last exit"]
    assert plots.plot_validation(HISTORY).lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6])
    with pytest.raises(ValueError, match="train_loss_exit1"):
        plots.plot_exit_losses(History(({"epoch": 1, "train_loss": 1.0},)))


def explanation(classes: list[int], shift: float = 0.0) -> Explanation:
    """Maps that rise from left to right; guided maps of two pixels, one bright and one dark."""
    count, guided = len(classes), torch.zeros(len(classes), 3, 4, 4)
    guided[:, 0, 0, 0], guided[:, 0, 0, 1] = 2.0 + shift, -2.0 - shift
    cams = torch.linspace(0, 1, 16).view(1, 4, 4).repeat(count, 1, 1)
    return Explanation(torch.tensor(classes), torch.full((count,), 0.75), cams, guided)


def test_plot_attributions_has_a_row_of_image_maps_and_guided_maps(split):
    maps = {"exit 1": explanation([1, 0]), "last": explanation([2, 2])}
    axes = plots.plot_attributions(split, [4, 0], maps).axes
    titles = ["b", "exit 1: b 75%", "last: c 75%", "exit 1, guided", "last, guided"]
    assert [ax.get_title() for ax in axes[:5]] == titles
    assert [len(ax.images) for ax in axes] == [1, 2, 2, 1, 1] * 2
    assert shown_in(axes[::5]) == [4, 0]
    image, cam = axes[1].images
    assert np.allclose(image.get_array(), 4)
    assert np.allclose(cam.get_array(), np.linspace(0, 1, 16).reshape(4, 4))
    assert (cam.get_clim(), 0 < cam.get_alpha() < 1) == ((0, 1), True)
    with pytest.raises(ValueError, match="'exit 1'"):
        plots.plot_attributions(split, [0], maps)


def test_plot_attributions_draws_guided_maps_grey_at_zero_and_on_the_whole_scale(split):
    maps = {"quiet": explanation([1]), "loud": explanation([1], shift=100.0), "zero": explanation([1], shift=-2.0)}
    *_, quiet, loud, zero = [ax.images[0].get_array() for ax in plots.plot_attributions(split, [4], maps).axes]
    for shown in (quiet, loud):
        assert shown[2, 2].tolist() == [0.5, 0.5, 0.5]
        assert shown[0, :2, 0].tolist() == pytest.approx([1, 0])
    assert np.allclose(zero, 0.5)
