import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils import Predictions
from eeutils.analysis import (
    accuracy_of,
    bootstrap_interval,
    calibration_error,
    ensemble_probs,
    ensemble_weights,
    exit_table,
    paired_bootstrap,
    points_gained,
    sure_images,
)
from eeutils.analysis.metrics import draw_images, draw_kinds
from tests.analysis.tables import from_probs, random_table, tables


@pytest.fixture
def table() -> Predictions:
    """Two exits, four images of class 0: exit 1 is right on images 0 and 3, exit 2 on 0, 1 and 3."""
    first = [[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.95, 0.05]]
    second = [[0.6, 0.4], [0.7, 0.3], [0.3, 0.7], [0.9, 0.1]]
    return from_probs([first, second], costs=[10, 40])


def test_exit_table_by_hand(table):
    rows = exit_table(table)
    assert rows.index.tolist() == [1, 2]
    assert rows["accuracy"].tolist() == [0.5, 0.75]
    assert rows["cost"].tolist() == [10, 40]
    assert rows["relative cost"].tolist() == [0.25, 1]
    mean = [(0.8 + 0.6 + 0.9 + 0.95) / 4, (0.6 + 0.7 + 0.7 + 0.9) / 4]
    assert rows["mean confidence"].tolist() == pytest.approx(mean)
    # Of 15 slices of confidence, only the two answers of 0.7 share one: one right, the other wrong.
    error = [(0.2 + 0.6 + 0.9 + 0.05) / 4, (0.4 + abs(0.3 - 0.7) + 0.1) / 4]
    assert rows["calibration error"].tolist() == pytest.approx(error, abs=1e-6)


def test_ensemble_probs_by_hand(table):
    mean, weighted = ensemble_probs(table), ensemble_probs(table, "weighted", (3, 1))
    assert mean[:, 0].tolist() == pytest.approx([0.7, 0.55, 0.2, 0.925])
    assert accuracy_of(mean, table.labels) == 0.75
    assert weighted[:, 0].tolist() == pytest.approx([0.75, 0.475, 0.15, 0.9375])
    assert accuracy_of(weighted, table.labels) == 0.5
    expected = [math.sqrt(a * b) for a, b in ((0.4, 0.7), (0.6, 0.3))]
    geometric = ensemble_probs(table, "geometric")
    assert geometric[1].tolist() == pytest.approx([value / sum(expected) for value in expected])


@pytest.mark.parametrize(
    ("how", "weights"),
    [("median", None), ("mean", (1, 1)), ("weighted", (1,)), ("weighted", (1, -1)), ("weighted", (0, 0))],
)
def test_ensemble_probs_refuses_other_weights(table, how, weights):
    with pytest.raises(ValueError, match=r"how|weights"):
        ensemble_probs(table, how, weights)


def likelihood(predictions: Predictions, weights: tuple[float, ...]) -> float:
    mixed = ensemble_probs(predictions, "weighted", weights).double()
    return float(mixed[torch.arange(len(mixed)), predictions.labels].log().mean())


@given(shape=st.tuples(st.integers(1, 3), st.integers(3, 30), st.integers(2, 4)), seed=st.integers(0, 999))
def test_ensemble_weights_make_the_labels_most_likely(shape, seed):
    predictions = random_table(shape, seed)
    weights = ensemble_weights(predictions)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    steps = [step / 10 for step in range(11)]
    others = [choice for choice in itertools.product(steps, repeat=shape[0]) if sum(choice) > 0]
    assert likelihood(predictions, weights) >= max(likelihood(predictions, other) for other in others) - 1e-3


def test_ensemble_weights_ignore_an_image_that_every_exit_rules_out():
    logits = torch.tensor([[[0.0, 999.0], [9.0, 0.0]], [[0.0, 999.0], [0.0, 0.0]]])
    predictions = Predictions(logits, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).double())
    assert ensemble_weights(predictions) == pytest.approx((1, 0))


@given(predictions=tables(max_images=30), bins=st.integers(1, 40))
def test_calibration_error_agrees_with_a_loop_over_slices(predictions, bins):
    expected = []
    for sure, right in zip(predictions.confidence.tolist(), predictions.correct.tolist(), strict=True):
        slices = [min(int(value * bins), bins - 1) for value in sure]
        gaps = [sum(r - s for r, s, at in zip(right, sure, slices, strict=True) if at == i) for i in range(bins)]
        expected.append(sum(map(abs, gaps)) / len(sure))
    assert calibration_error(predictions, bins).tolist() == pytest.approx(expected, abs=1e-6)


def test_sure_images_are_right_and_most_confident_first(table):
    assert sure_images(table, 0, 0.5).tolist() == [3, 0]
    assert sure_images(table, 0, float(table.confidence[0, 0])).tolist() == [3, 0]
    assert sure_images(table, 0, 0.9).tolist() == [3]
    assert sure_images(table, 1, 0.0).tolist() == [3, 1, 0]
    with pytest.raises(ValueError, match="-1"):
        sure_images(table, -1, 0.0)


def test_paired_bootstrap_is_about_four_standard_errors_wide():
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(1, 2000, generator=generator) < 0.7
    reference = torch.rand(1, 2000, generator=generator) < 0.6
    difference = correct.double() - reference.double()
    mean, error = float(difference.mean()), float(difference.std()) / 2000**0.5
    low, high = paired_bootstrap(correct, reference)
    assert [low.item(), high.item()] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.3 * error)
    gained = points_gained(correct[0], reference[0])
    assert gained == {"gain": pytest.approx(100 * mean), "low": 100 * low.item(), "high": 100 * high.item()}


def test_draw_kinds_has_the_moments_of_draw_images():
    counts = torch.tensor([60, 30, 10])
    kinds = torch.arange(3).repeat_interleave(counts)
    by_image = draw_images(100, 4000, seed=0).double() @ torch.nn.functional.one_hot(kinds).double()
    by_kind = draw_kinds(counts, 4000, seed=0)
    torch.testing.assert_close(by_kind.mean(0), by_image.mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(by_kind.T.cov(), by_image.T.cov(), atol=1.5, rtol=0)
    assert not torch.equal(by_kind, draw_kinds(counts, 4000, seed=1))


def test_bootstrap_interval_leaves_nan_out():
    values = torch.cat([torch.linspace(0, 1, 1001), torch.tensor([math.nan] * 50)]).double()
    assert bootstrap_interval(values[torch.randperm(len(values))]) == pytest.approx((0.025, 0.975))
    assert all(map(math.isnan, bootstrap_interval(torch.tensor([math.nan]))))
