import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eeutils.analysis.policies import Decisions, ThresholdPolicy, certainty, confidence, decide, margin, score_of
from eeutils.analysis.predictions import Predictions

SCORES = ["confidence", "entropy", "margin"]


def from_probs(probs: list, labels: list[int], costs: list[float]) -> Predictions:
    logits = torch.tensor(probs, dtype=torch.float64).log().float()
    return Predictions(logits, torch.tensor(labels), torch.tensor(costs).double())


@pytest.fixture
def table() -> Predictions:
    """Three exits, four images. Confidence at exits 1 and 2: (.9, .6), (.6, .9), (.7, .6), (.6, .6)."""
    return from_probs(
        [
            [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.6, 0.4]],
            [[0.6, 0.4], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]],
            [[0.8, 0.2], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]],
        ],
        [0, 0, 1, 1],
        [1, 2, 4],
    )


def test_scores_by_hand():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert confidence(logits).item() == pytest.approx(0.7)
    assert margin(logits).item() == pytest.approx(0.5)
    assert certainty(logits).item() == pytest.approx(1 - entropy / math.log(3), abs=1e-6)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100])
@pytest.mark.parametrize("level", [0.0, 1.3, -40.0])
def test_an_undecided_answer_scores_its_least_and_reaches_threshold_zero(name, classes, level):
    undecided = torch.full((1, 1, classes), level)
    assert score_of(undecided, name).item() == pytest.approx(1 / classes if name == "confidence" else 0, abs=1e-6)
    assert ThresholdPolicy(0, name).leaves(undecided).all()


@pytest.mark.parametrize("name", SCORES)
def test_a_decided_answer_scores_one_and_leaves_nowhere_only_at_infinity(name):
    decided = torch.tensor([[[500.0, 0.0, 0.0]]])
    assert score_of(decided, name).item() == 1
    assert ThresholdPolicy(1, name).leaves(decided).all()
    assert not ThresholdPolicy(math.inf, name).leaves(decided).any()


@given(
    name=st.sampled_from(SCORES),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 12)),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 999),
)
def test_scores_lie_between_zero_and_one_and_do_not_depend_on_the_rest_of_the_batch(name, shape, scale, seed):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    together = score_of(logits, name)
    assert ((together >= 0) & (together <= 1 + 1e-6)).all()
    one_by_one = torch.stack([torch.cat([score_of(image[None], name) for image in answers]) for answers in logits])
    assert torch.equal(together, one_by_one)


def test_an_unknown_score_is_refused_with_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown score 'patience'; choose from \['confidence', 'ensemble', 'entropy'"
    ):
        score_of(torch.zeros(1, 2), "patience")
    with pytest.raises(ValueError, match="unknown score"):
        ThresholdPolicy(0.5, "patience")


@pytest.mark.parametrize("thresholds", [-0.1, 90, math.nan, -math.inf, (0.5, 1.5), (0.5, math.nan)])
def test_thresholds_that_make_no_sense_are_refused(thresholds):
    with pytest.raises(ValueError, match=r"thresholds must be in \[0, 1\]"):
        ThresholdPolicy(thresholds)


def as_tensors(values: list[float]) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, pd.Series, as_tensors])
def test_thresholds_come_in_any_sequence_of_numbers_and_are_kept_as_a_tuple(table, kind):
    policy = ThresholdPolicy(kind([0.75, 0.5]))
    assert policy.thresholds == (0.75, 0.5)
    assert all(type(value) is float for value in policy.thresholds)
    assert policy == ThresholdPolicy((0.75, 0.5))
    assert hash(policy) == hash(ThresholdPolicy((0.75, 0.5)))
    assert decide(table, policy).exit_index.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("number", [1, np.float64(1), torch.tensor(1.0), np.float32(1)])
def test_one_number_is_kept_as_a_float(number):
    assert type(ThresholdPolicy(number).thresholds) is float


def test_thresholds_are_kept_to_the_last_digit():
    assert ThresholdPolicy(0.1).thresholds == 0.1
    assert ThresholdPolicy((1 - 1e-9, 0.7)).thresholds == (1 - 1e-9, 0.7)


@pytest.mark.parametrize(
    "thresholds", ["0.5", None, ["0.5", "0.6"], [[0.5, 0.6]], {"exit 1": 0.5}, {0.5}, 0.5j, [None]]
)
def test_what_is_no_sequence_of_numbers_is_refused_by_name(thresholds):
    with pytest.raises(ValueError, match=rf"a number, or a sequence of numbers, got {re.escape(repr(thresholds))}"):
        ThresholdPolicy(thresholds)


def test_the_number_of_thresholds_has_to_fit(table):
    for thresholds in ((0.5,), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="a network with 3 exits has 2 early ones"):
            decide(table, ThresholdPolicy(thresholds))
    ThresholdPolicy(0.5).check(7)
    ThresholdPolicy(()).check(1)


@pytest.mark.parametrize(
    ("thresholds", "exits", "accuracy", "mean_cost"),
    [
        (0.0, [0, 0, 0, 0], 0.25, 1),
        (0.65, [0, 1, 0, 2], 0.75, 8 / 4),
        (0.8, [0, 1, 2, 2], 1.0, 11 / 4),
        (1.0, [2, 2, 2, 2], 0.75, 4),
        ((0.8, 0.5), [0, 1, 1, 1], 1.0, 7 / 4),
        ((math.inf, 0.0), [1, 1, 1, 1], 1.0, 2),
        (math.inf, [2, 2, 2, 2], 0.75, 4),
    ],
)
def test_decisions_by_hand(table, thresholds, exits, accuracy, mean_cost):
    decisions = decide(table, ThresholdPolicy(thresholds))
    assert decisions.exit_index.tolist() == exits
    assert decisions.accuracy == accuracy
    assert decisions.mean_cost == mean_cost
    assert decisions.relative_cost == mean_cost / 4
    assert decisions.exit_rates.tolist() == [exits.count(index) / 4 for index in range(3)]


def test_exit_rates_name_exits_that_nobody_took():
    decisions = Decisions(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0, 2.0, 3.0]))
    assert decisions.exit_rates.tolist() == [0, 1, 0]


def test_a_network_with_one_exit_lets_everybody_go_there():
    one = from_probs([[[0.9, 0.1], [0.2, 0.8]]], [0, 0], [5])
    decisions = decide(one, ThresholdPolicy(0.99))
    assert decisions.exit_index.tolist() == [0, 0]
    assert decisions.relative_cost == 1


@given(threshold=st.floats(0, 1), seed=st.integers(0, 999), name=st.sampled_from(SCORES))
def test_an_image_leaves_at_its_first_exit_that_is_sure_enough(threshold, seed, name):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 12, 3, generator=generator) * 2
    predictions = Predictions(logits, torch.zeros(12, dtype=torch.int64), torch.arange(1, 5).double())
    decisions = decide(predictions, ThresholdPolicy(threshold, name))
    sure = (score_of(logits, name) >= threshold).tolist()
    for image in range(12):
        first = next((index for index in range(3) if sure[index][image]), 3)
        assert decisions.exit_index[image] == first
        assert decisions.predicted[image] == logits[first, image].argmax()


@dataclass(frozen=True)
class TwoInARow:
    """Leave when an exit names the class that the one before named."""

    def leaves(self, logits: Tensor) -> Tensor:
        named = logits.argmax(-1)
        return named[-1] == named[-2] if len(named) > 1 else torch.zeros_like(named[-1], dtype=torch.bool)

    def check(self, num_exits: int) -> None:
        if num_exits < 2:
            raise ValueError("two exits are needed to agree")


def test_a_rule_of_ones_own(table):
    # Named by the exits: (0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 1, 1).
    decisions = decide(table, TwoInARow())
    assert decisions.exit_index.tolist() == [1, 2, 2, 2]
    with pytest.raises(ValueError, match="two exits are needed"):
        decide(from_probs([[[0.9, 0.1]]], [0], [1]), TwoInARow())


@pytest.mark.parametrize("answer", [torch.tensor([1, 0, 1, 0]), torch.tensor([True]), torch.ones(1, 4).bool()])
def test_a_rule_that_does_not_answer_a_bool_an_image_is_named(table, answer):
    class Careless(TwoInARow):
        def leaves(self, logits: Tensor) -> Tensor:
            return answer

    with pytest.raises(ValueError, match=r"Careless\.leaves\(\) must answer \(4,\) bool"):
        decide(table, Careless())
