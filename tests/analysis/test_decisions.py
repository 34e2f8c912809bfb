import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eeutils import Predictions, ThresholdPolicy, decide
from eeutils.analysis import Decisions, accuracy_cost_curve, score_of, with_fallback
from eeutils.analysis.decisions import fallback_logits, unconfident_counts
from tests.analysis.tables import from_probs, random_table, tables
from tests.toys import TwoInARow


@pytest.fixture
def table() -> Predictions:
    """Confidence of the four images at exits 1 to 3: (.9, .6, .8), (.6, .9, .8), (.7, .6, .8), (.6, .6, .8)."""
    first = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.6, 0.4]]
    second = [[0.6, 0.4], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    third = [[0.8, 0.2], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]]
    return from_probs([first, second, third], [0, 0, 1, 1], [1, 2, 4])


@pytest.mark.parametrize(
    ("thresholds", "exits", "accuracy", "mean_cost"),
    [(0.65, [0, 1, 0, 2], 0.75, 8 / 4), (1.0, [2, 2, 2, 2], 0.75, 4), ((0.8, 0.5), [0, 1, 1, 1], 1.0, 7 / 4)],
)
def test_decide_by_hand(table, thresholds, exits, accuracy, mean_cost):
    decisions = decide(table, ThresholdPolicy(thresholds))
    assert decisions.exit_index.tolist() == exits
    assert decisions.accuracy == accuracy
    assert decisions.mean_cost == mean_cost
    assert decisions.relative_cost == mean_cost / 4
    assert decisions.exit_rates.tolist() == [exits.count(index) / 4 for index in range(3)]


def test_decisions_exit_rates_by_class_by_hand():
    exits, labels = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])
    rates = Decisions(exits, labels, labels, torch.tensor([1.0, 2.0])).exit_rates_by_class(["cat", "dog"])
    assert list(rates) == ["all", "cat", "dog"]
    assert torch.stack(list(rates.values())).flatten().tolist() == pytest.approx([0.4, 0.6, 0.5, 0.5, 1 / 3, 2 / 3])


@given(predictions=tables(), threshold=st.floats(0, 1), name=st.sampled_from(["confidence", "entropy", "margin"]))
def test_decide_takes_the_first_exit_whose_score_suffices(predictions, threshold, name):
    decisions = decide(predictions, ThresholdPolicy(threshold, name))
    reached = (score_of(predictions.logits, name) >= threshold).tolist()
    last = predictions.num_exits - 1
    for image, exit_index in enumerate(decisions.exit_index.tolist()):
        assert exit_index == next((index for index in range(last) if reached[index][image]), last)
        assert decisions.predicted[image] == predictions.logits[exit_index, image].argmax()


@pytest.mark.parametrize(
    "answer",
    [[True] * 4, torch.tensor([1, 0, 1, 0]), torch.ones(4, 1).bool()],
    ids=lambda answer: type(answer).__name__,
)
def test_decide_refuses_a_policy_that_returns_anything_but_a_bool_per_image(table, answer):
    class Careless(TwoInARow):
        def leaves(self, logits: Tensor) -> Tensor:
            return answer

    with pytest.raises(ValueError, match=r"Careless.*\(4,\) bool"):
        decide(table, Careless())


@pytest.mark.parametrize("inference", [False, True])
def test_decide_keeps_the_table_from_a_policy_that_writes(table, inference):
    class Scaling(TwoInARow):
        def leaves(self, logits: Tensor) -> Tensor:
            return logits.mul_(2).softmax(-1).amax(-1)[-1] > 0.9

    before = table.logits.clone()
    with torch.inference_mode(inference):
        decisions = decide(table, Scaling())
    assert torch.equal(table.logits, before)
    assert decisions.exit_index.tolist() == [0, 1, 2, 2]  # confidence of doubled logits: 0.6 -> 0.69, 0.9 -> 0.99


@pytest.mark.parametrize(
    ("fallback", "thresholds", "predicted", "relative_cost"),
    [("most_confident", math.inf, [0, 0, 1, 1], 1), ("last", (math.inf, 0.85), [0, 0, 1, 1], 14 / 16)],
)
def test_decide_with_a_fallback_by_hand(table, fallback, thresholds, predicted, relative_cost):
    decisions = decide(table, ThresholdPolicy(thresholds), fallback)
    assert decisions.predicted.tolist() == predicted
    assert decisions.relative_cost == relative_cost


def test_fallback_logits_most_confident_compares_probabilities_and_takes_the_first_of_equals():
    most, less = torch.tensor([[[0.5, 0.45, 0.05]], [[0.45, 0.3, 0.25]]]).log()
    assert torch.equal(fallback_logits(torch.stack([less + 3, most]), "most_confident"), most)
    tied = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert fallback_logits(tied, "most_confident").tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="'first'"):
        decide(random_table((2, 3, 2)), ThresholdPolicy(0.5), "first")


@given(
    predictions=tables(),
    score=st.sampled_from(["ensemble", "geometric"]),
    fallback=st.sampled_from(["last", "most_confident"]),
    threshold=st.floats(0, 1),
)
def test_with_fallback_makes_sweeps_agree_with_decide(predictions, score, fallback, threshold):
    curve = accuracy_cost_curve(with_fallback(predictions, fallback), [threshold], score)
    decisions = decide(predictions, ThresholdPolicy(threshold, score), fallback)
    assert curve.accuracy.item() == pytest.approx(decisions.accuracy)
    assert curve.cost.item() == pytest.approx(decisions.mean_cost)


def test_unconfident_counts_by_hand(table):
    # At 0.85 the last two images stay, both most confident at exit 3; at infinity all do.
    assert unconfident_counts(table, ThresholdPolicy(0.85)).tolist() == [0, 0, 2]
    assert unconfident_counts(table, ThresholdPolicy(math.inf)).tolist() == [1, 1, 2]
    assert unconfident_counts(table, ThresholdPolicy(0.0)).tolist() == [0, 0, 0]
