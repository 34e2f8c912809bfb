import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eeutils.analysis.decisions import Decisions, decide
from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Choice


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


def test_decisions_are_shown_in_a_line(table):
    shown = repr(decide(table, ThresholdPolicy(0.65)))
    assert shown == "Decisions(4 images: accuracy 75.00% for 50.0% of the cost, exit rates 50.0% / 25.0% / 25.0%)"


def test_exit_rates_name_exits_that_nobody_took():
    decisions = Decisions(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0, 2.0, 3.0]))
    assert decisions.exit_rates.tolist() == [0, 1, 0]


def test_exit_rates_of_all_images_and_of_each_class():
    exits, labels = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])
    rates = Decisions(exits, labels, labels, torch.tensor([1.0, 2.0])).exit_rates_by_class(["cat", "dog"])
    assert {name: shares.tolist() for name, shares in rates.items()} == {
        "all": [0.4, 0.6],
        "cat": [0.5, 0.5],
        "dog": pytest.approx([1 / 3, 2 / 3]),
    }


def test_a_network_with_one_exit_lets_everybody_go_there():
    one = from_probs([[[0.9, 0.1], [0.2, 0.8]]], [0, 0], [5])
    decisions = decide(one, ThresholdPolicy(0.99))
    assert decisions.exit_index.tolist() == [0, 0]
    assert decisions.relative_cost == 1


@given(threshold=st.floats(0, 1), seed=st.integers(0, 999), name=st.sampled_from(["confidence", "entropy", "margin"]))
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


def test_a_policy_for_another_network_is_refused(table):
    with pytest.raises(ValueError, match="a network with 3 exits has 2 early ones"):
        decide(table, ThresholdPolicy((0.5,)))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (0.9, r"float is no policy: give ThresholdPolicy\(0\.9\)"),
        (Choice(ThresholdPolicy(0.9), 0.0, 0.0), r"Choice is no policy: give its \.policy"),
    ],
)
def test_what_is_no_policy_is_named(table, policy, message):
    with pytest.raises(TypeError, match=message):
        decide(table, policy)


def test_a_rule_of_ones_own(table, two_in_a_row):
    # Named by the exits: (0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 1, 1).
    decisions = decide(table, two_in_a_row())
    assert decisions.exit_index.tolist() == [1, 2, 2, 2]
    with pytest.raises(ValueError, match="two exits are needed"):
        decide(from_probs([[[0.9, 0.1]]], [0], [1]), two_in_a_row())


@pytest.mark.parametrize("answer", [torch.tensor([1, 0, 1, 0]), torch.tensor([True]), torch.ones(1, 4).bool()])
def test_a_rule_that_does_not_answer_a_bool_an_image_is_named(table, answer, two_in_a_row):
    class Careless(two_in_a_row):
        def leaves(self, logits: Tensor) -> Tensor:
            return answer

    with pytest.raises(ValueError, match=r"Careless\.leaves\(\) must answer \(4,\) bool"):
        decide(table, Careless())
