import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.analysis.costs import NetworkCosts
from eeutils.analysis.metrics import (
    accuracy_of,
    calibration_error,
    cost_table,
    ensemble_probs,
    ensemble_weights,
    exit_table,
    gains,
    paired_bootstrap,
    points_gained,
    sure_images,
    surest_first,
)
from eeutils.analysis.predictions import Predictions


def from_probs(probs: list, labels: list[int], costs: list[float] | None = None) -> Predictions:
    """A table whose softmax is `probs` (E, N, C)."""
    probs = torch.tensor(probs, dtype=torch.float64)
    costs = torch.arange(1, len(probs) + 1).double() if costs is None else torch.tensor(costs).double()
    return Predictions(probs.log().float(), torch.tensor(labels), costs)


@pytest.fixture
def table() -> Predictions:
    """Two exits, four images of class 0: exit 1 is right on images 0 and 3, exit 2 on 0, 1 and 3."""
    return from_probs(
        [
            [[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.95, 0.05]],
            [[0.6, 0.4], [0.7, 0.3], [0.3, 0.7], [0.9, 0.1]],
        ],
        [0, 0, 0, 0],
        [10, 40],
    )


def random_table(shape: tuple[int, int, int], seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 3
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    return Predictions(logits, labels, torch.arange(1, shape[0] + 1).double())


shapes = st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(2, 5))


def test_exit_table(table):
    rows = exit_table(table)
    assert rows.index.tolist() == [1, 2]
    assert rows["accuracy"].tolist() == [0.5, 0.75]
    assert rows["cost"].tolist() == [10, 40]
    assert rows["relative cost"].tolist() == [0.25, 1]
    assert rows["mean confidence"].tolist() == pytest.approx(
        [(0.8 + 0.6 + 0.9 + 0.95) / 4, (0.6 + 0.7 + 0.7 + 0.9) / 4]
    )
    # In 15 slices of confidence only the two answers of 0.7 share one, the one right and the other wrong.
    assert rows["calibration error"].tolist() == pytest.approx(
        [(0.2 + 0.6 + 0.9 + 0.05) / 4, (0.4 + abs(0.3 - 0.7) + 0.1) / 4], abs=1e-6
    )


def test_cost_table():
    costs = NetworkCosts(
        unit_macs=torch.tensor([3e6, 5e6], dtype=torch.float64),
        exit_macs=torch.tensor([1e6, 1e6], dtype=torch.float64),
        unit_params=torch.tensor([10, 20]),
        exit_params=torch.tensor([3, 4]),
        exit_after=(0, 1),
    )

    rows = cost_table(costs)

    assert rows.index.tolist() == [1, 2]
    assert rows["multiply-adds (M)"].tolist() == [4, 10]
    assert rows["share"].tolist() == [0.4, 1]
    assert rows["of the head alone"].tolist() == [0.1, 0.1]
    assert rows["parameters"].tolist() == [13, 37]


def test_the_mean_ensemble(table):
    probs = ensemble_probs(table)
    assert probs[:, 0].tolist() == pytest.approx([0.7, 0.55, 0.2, 0.925])
    assert accuracy_of(probs, table.labels) == 0.75


def test_the_weighted_ensemble_takes_shares_of_the_weights(table):
    probs = ensemble_probs(table, "weighted", (3, 1))
    assert probs[:, 0].tolist() == pytest.approx([0.75, 0.475, 0.15, 0.9375])
    assert accuracy_of(probs, table.labels) == 0.5


def test_the_geometric_ensemble(table):
    expected = [math.sqrt(a * b) for a, b in ((0.4, 0.7), (0.6, 0.3))]
    probs = ensemble_probs(table, "geometric")
    assert probs[1].tolist() == pytest.approx([value / sum(expected) for value in expected])


@given(shape=shapes, seed=st.integers(0, 999), how=st.sampled_from(["mean", "weighted", "geometric"]))
def test_ensembles_are_distributions(shape, seed, how):
    weights = tuple(range(1, shape[0] + 1)) if how == "weighted" else None
    probs = ensemble_probs(random_table(shape, seed), how, weights)
    torch.testing.assert_close(probs.sum(-1), torch.ones(shape[1]))
    assert (probs >= 0).all()


@pytest.mark.parametrize(
    ("how", "weights", "message"),
    [
        ("median", None, "unknown ensemble 'median'"),
        ("weighted", None, "weights go with 'weighted'"),
        ("mean", (1, 1), "weights go with 'weighted'"),
        ("weighted", (1,), "2 exits need as many weights"),
        ("weighted", (), "2 exits need as many weights"),
        ("weighted", (1, -1), "none negative"),
        ("weighted", (0, 0), "not all 0"),
        ("weighted", (math.nan, 1), "none negative"),
        ("weighted", (math.inf, 1), "2 exits"),
    ],
)
def test_ensembles_that_make_no_sense(table, how, weights, message):
    with pytest.raises(ValueError, match=message):
        ensemble_probs(table, how, weights)


def likelihood(predictions: Predictions, weights: tuple[float, ...]) -> float:
    mixed = ensemble_probs(predictions, "weighted", weights).double()
    return float(mixed[torch.arange(len(mixed)), predictions.labels].log().mean())


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(3, 30), st.integers(2, 4)), seed=st.integers(0, 999))
def test_ensemble_weights_sum_to_one_and_make_the_labels_most_likely(shape, seed):
    predictions = random_table(shape, seed)
    weights = ensemble_weights(predictions)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    steps = [step / 10 for step in range(11)]
    others = [choice for choice in itertools.product(steps, repeat=shape[0]) if sum(choice) > 0]
    assert likelihood(predictions, weights) >= max(likelihood(predictions, other) for other in others) - 1e-3


@pytest.mark.parametrize(("worse", "better"), [(0.1, 0.9), (0.45, 0.5)])
def test_ensemble_weights_ignore_an_exit_that_only_misleads_be_it_by_little(worse, better):
    predictions = from_probs([[[worse, 1 - worse]] * 5, [[better, 1 - better]] * 5], [0] * 5)
    assert ensemble_weights(predictions) == pytest.approx((0, 1))


def test_an_image_that_every_exit_rules_out_has_no_say_in_the_ensemble_weights():
    ruled_out, told = [0.0, 999.0], [9.0, 0.0]
    predictions = Predictions(
        torch.tensor([[ruled_out, told], [ruled_out, [0.0, 0.0]]]),
        torch.tensor([0, 0]),
        torch.tensor([1.0, 2.0]).double(),
    )
    assert predictions.probs[:, 0, 0].tolist() == [0, 0]
    assert ensemble_weights(predictions) == pytest.approx((1, 0))


def test_calibration_error_by_hand():
    # Two slices of confidence: 0.6 and 0.7 in one (one of two right), 0.9 in the other (right).
    predictions = from_probs([[[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]], [0, 0, 0])
    upper = abs((1 - 0.6) + (0 - 0.7) + (1 - 0.9)) / 3
    assert calibration_error(predictions, bins=2).item() == pytest.approx(upper, abs=1e-6)
    finer = (abs((1 - 0.6) + (0 - 0.7)) + abs(1 - 0.9)) / 3
    assert calibration_error(predictions, bins=5).item() == pytest.approx(finer, abs=1e-6)


def test_a_sure_and_right_exit_is_calibrated_and_a_sure_and_wrong_one_is_not():
    sure = Predictions(
        torch.tensor([[[99.0, 0.0]], [[0.0, 99.0]]]), torch.tensor([0]), torch.tensor([1.0, 2.0]).double()
    )
    assert calibration_error(sure).tolist() == [0, 1]


@given(shape=shapes, seed=st.integers(0, 999), bins=st.integers(1, 40))
def test_calibration_error_is_what_a_loop_over_slices_gives(shape, seed, bins):
    predictions = random_table(shape, seed)
    expected = []
    for sure, right in zip(predictions.confidence.tolist(), predictions.correct.tolist(), strict=True):
        slices = [min(int(value * bins), bins - 1) for value in sure]
        gaps = [sum(right[i] - sure[i] for i in range(shape[1]) if slices[i] == number) for number in range(bins)]
        expected.append(sum(map(abs, gaps)) / shape[1])
    assert calibration_error(predictions, bins).tolist() == pytest.approx(expected, abs=1e-6)


def test_calibration_needs_a_slice(table):
    with pytest.raises(ValueError, match="bins must be 1 or more"):
        calibration_error(table, bins=0)


def test_sure_images_are_right_and_come_surest_first(table):
    assert sure_images(table, 0, 0.5).tolist() == [3, 0]
    assert sure_images(table, 0, 0.9).tolist() == [3]
    assert sure_images(table, 0, float(table.confidence[0, 0])).tolist() == [3, 0]
    assert sure_images(table, 0, 1.0).tolist() == []
    assert sure_images(table, 1, 0.0).tolist() == [3, 1, 0]
    with pytest.raises(ValueError, match="got -1"):
        sure_images(table, -1, 0.0)


def test_gains_are_percentage_points():
    assert gains(torch.tensor([0.5, 0.75]).double(), 0.6).tolist() == pytest.approx([-10, 15])


def test_surest_first_keeps_the_order_of_equals_and_takes_nobody_else():
    chosen = torch.tensor([True, True, False, True])
    assert surest_first(chosen, torch.tensor([0.5, 0.7, 0.9, 0.5])).tolist() == [1, 0, 3]
    assert surest_first(~chosen.new_ones(4), torch.rand(4)).tolist() == []


def test_the_bootstrap_interval_of_no_difference_is_empty_and_that_of_a_sure_gain_is_one_point():
    right = torch.tensor([[True, False, True, True], [True] * 4])
    low, high = paired_bootstrap(right, right)
    assert low.tolist() == high.tolist() == [0, 0]
    low, high = paired_bootstrap(right[1:], torch.zeros(1, 4, dtype=torch.bool))
    assert low.tolist() == high.tolist() == [1]


def test_the_bootstrap_interval_is_about_four_standard_errors_wide():
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(1, 2000, generator=generator) < 0.7
    reference = torch.rand(1, 2000, generator=generator) < 0.6
    difference = correct.double() - reference.double()
    error = float(difference.std()) / 2000**0.5
    low, high = paired_bootstrap(correct, reference)
    assert low.item() == pytest.approx(float(difference.mean()) - 1.96 * error, abs=0.3 * error)
    assert high.item() == pytest.approx(float(difference.mean()) + 1.96 * error, abs=0.3 * error)


def test_the_bootstrap_asks_only_how_many_images_are_gained_and_lost():
    generator = torch.Generator().manual_seed(0)
    correct, reference = torch.rand(2, 1, 300, generator=generator) < 0.7
    shuffled = torch.randperm(300, generator=generator)
    assert paired_bootstrap(correct[:, shuffled], reference[:, shuffled]) == paired_bootstrap(correct, reference)
    assert paired_bootstrap(correct, reference) != paired_bootstrap(correct, reference, seed=1)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3)])
def test_the_bootstrap_needs_the_same_exits_and_images(shape):
    with pytest.raises(ValueError, match="same exits and images"):
        paired_bootstrap(torch.ones(2, 3, dtype=torch.bool), torch.ones(shape, dtype=torch.bool))


def test_points_gained_are_percents_with_their_interval():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(400, generator=generator) < 0.5
    correct = reference | (torch.rand(400, generator=generator) < 0.2)
    gained = points_gained(correct, reference)
    assert gained["gain"] == pytest.approx(float((correct & ~reference).sum()) / 4)
    assert 0 < gained["low"] < gained["gain"] < gained["high"] < 20
    assert points_gained(reference, correct)["gain"] == -gained["gain"]
