import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy, check_policy, score_of
from eeutils.analysis.thresholds import Choice

SCORES = ["confidence", "entropy", "margin"]


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


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="unknown score 'patience'; choose from"):
        ThresholdPolicy(0.5, "patience")


@pytest.mark.parametrize("thresholds", [-0.1, 90, math.nan, -math.inf, (0.5, 1.5), (0.5, math.nan)])
def test_thresholds_that_make_no_sense_are_refused(thresholds):
    with pytest.raises(ValueError, match=r"thresholds must be in \[0, 1\]"):
        ThresholdPolicy(thresholds)


def as_tensors(values: list[float]) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, pd.Series, as_tensors])
def test_thresholds_come_in_any_sequence_of_numbers_and_are_kept_as_a_tuple(kind):
    policy = ThresholdPolicy(kind([0.75, 0.5]))
    assert policy.thresholds == (0.75, 0.5)
    assert all(type(value) is float for value in policy.thresholds)
    assert policy == ThresholdPolicy((0.75, 0.5))
    assert hash(policy) == hash(ThresholdPolicy((0.75, 0.5)))


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


def test_the_number_of_thresholds_has_to_fit():
    for thresholds in ((0.5,), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="a network with 3 exits has 2 early ones"):
            check_policy(ThresholdPolicy(thresholds), 3)
    check_policy(ThresholdPolicy((0.5, 0.5)), 3)
    check_policy(ThresholdPolicy(0.5), 7)
    check_policy(ThresholdPolicy(()), 1)


class NeverChecks:
    def leaves(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[1], dtype=torch.bool)


class NeverLeaves:
    def check(self, num_exits: int) -> None:
        pass


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (0.9, "float is no policy: give ThresholdPolicy(0.9), say, or choice.policy"),
        (None, "NoneType is no policy: give ThresholdPolicy(0.9), say, or choice.policy"),
        (Choice(ThresholdPolicy(0.9), 0.0, 0.0), "Choice is no policy: give its .policy"),
        (NeverChecks(), "NeverChecks has no check(num_exits); see eeutils.analysis.Policy"),
        (NeverLeaves(), "NeverLeaves has no leaves(logits); see eeutils.analysis.Policy"),
    ],
)
def test_what_is_no_policy_is_told_what_it_lacks(policy, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_policy(policy, 3)
