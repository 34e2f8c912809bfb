import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.analysis.decisions import decide, fallback_logits, with_fallback
from eeutils.analysis.policies import PatiencePolicy, ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import accuracy_cost_curve


def random_table(shape: tuple[int, int, int], seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 2
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    return Predictions(logits, labels, torch.arange(1, shape[0] + 1).double())


@pytest.fixture
def table() -> Predictions:
    """Three exits, four images. Confidence at the exits: (.9, .6, .8), (.6, .9, .8), (.7, .6, .8), (.6, .6, .8)."""
    probs = [
        [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.6, 0.4]],
        [[0.6, 0.4], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]],
        [[0.2, 0.8], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]],
    ]
    logits = torch.tensor(probs, dtype=torch.float64).log().float()
    return Predictions(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 2.0, 4.0]).double())


@pytest.mark.parametrize(
    ("fallback", "policy", "predicted", "relative_cost"),
    [
        ("last", ThresholdPolicy(math.inf), [1, 1, 1, 1], 1),
        ("most_confident", ThresholdPolicy(math.inf), [0, 0, 1, 1], 1),
        ("last", ThresholdPolicy((math.inf, 0.85)), [1, 0, 1, 1], 14 / 16),
        ("most_confident", ThresholdPolicy((math.inf, 0.85)), [0, 0, 1, 1], 14 / 16),
        ("most_confident", ThresholdPolicy(0.0), [0, 1, 0, 0], 1 / 4),
    ],
)
def test_fallbacks_by_hand(table, fallback, policy, predicted, relative_cost):
    decisions = decide(table, policy, fallback)
    assert decisions.predicted.tolist() == predicted
    assert decisions.relative_cost == relative_cost


def test_of_equally_sure_exits_the_first_answers():
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert fallback_logits(logits, "most_confident").tolist() == [[1, 0]]


def test_the_most_confident_exit_is_so_by_probability_not_by_logit_or_margin():
    surest, doubtful = torch.tensor([[[0.5, 0.45, 0.05]], [[0.45, 0.3, 0.25]]]).log()
    logits = torch.stack([doubtful + 3, surest])
    assert torch.equal(fallback_logits(logits, "most_confident"), surest)


def test_unknown_fallbacks_are_refused_with_the_choices(table):
    for use in (
        lambda: decide(table, PatiencePolicy(1), "first"),
        lambda: with_fallback(table, "first"),
        lambda: fallback_logits(table.logits, "first"),
    ):
        with pytest.raises(ValueError, match=r"unknown fallback 'first'; choose from \['last', 'most_confident'\]"):
            use()


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(2, 4)),
    seed=st.integers(0, 999),
    name=st.sampled_from(["ensemble", "geometric"]),
    threshold=st.floats(0, 1),
)
def test_sweeps_work_on_scores_that_count_in_earlier_exits_and_on_both_fallbacks(shape, seed, name, threshold):
    predictions = random_table(shape, seed)
    for fallback in ("last", "most_confident"):
        curve = accuracy_cost_curve(with_fallback(predictions, fallback), [threshold], name)
        decisions = decide(predictions, ThresholdPolicy(threshold, name), fallback)
        assert curve.accuracy.item() == pytest.approx(decisions.accuracy)
        assert curve.cost.item() == pytest.approx(decisions.mean_cost)
