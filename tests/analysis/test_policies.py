import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eeutils.analysis import policies
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import (
    AgreementPolicy,
    PatiencePolicy,
    ThresholdPolicy,
    certainty,
    check_policy,
    confidence,
    latest_score,
    margin,
    register_score,
    score_of,
)
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.models import MultiExitNet
from tests.analysis.tables import random_table, tables

ALONE, SHARED = ["confidence", "entropy", "margin"], ["ensemble", "geometric"]


def test_scores_by_hand():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert confidence(logits).item() == pytest.approx(0.7)
    assert margin(logits).item() == pytest.approx(0.5)
    assert certainty(logits).item() == pytest.approx(1 - entropy / math.log(3), abs=1e-6)


def test_scores_over_several_exits_by_hand():
    logits = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]]).log()
    mean = [0.9, (0.1 + 0.6) / 2, (0.1 + 0.6 + 0.8) / 3]  # of the class that the exit predicts
    assert score_of(logits, "ensemble")[:, 0].tolist() == pytest.approx(mean)
    first, second = math.sqrt(0.9 * 0.4), math.sqrt(0.1 * 0.6)
    assert score_of(logits, "geometric")[:2, 0].tolist() == pytest.approx([0.9, second / (first + second)])


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(2, 12)),
    seed=st.integers(0, 999),
    scale=st.floats(0, 1e4),
    name=st.sampled_from(ALONE + SHARED),
)
def test_scores_lie_in_0_to_1_and_ignore_other_images_and_later_exits(shape, seed, scale, name):
    logits = random_table(shape, seed, scale).logits
    scores = score_of(logits, name)
    assert ((scores >= 0) & (scores <= 1 + 1e-6)).all()
    one_by_one = torch.cat([score_of(logits[:, [image]], name) for image in range(shape[1])], dim=1)
    torch.testing.assert_close(one_by_one, scores, rtol=1e-6, atol=1e-7)
    for index in range(shape[0]):
        assert torch.equal(latest_score(logits[: index + 1], name), scores[index])


@pytest.mark.parametrize("name", ALONE)
def test_threshold_policy_at_the_ends_of_the_scores(name):
    even, certain = torch.full((1, 1, 7), -40.0), torch.tensor([[[500.0, 0.0, 0.0]]])
    assert score_of(even, name).item() == pytest.approx(1 / 7 if name == "confidence" else 0, abs=1e-6)
    assert ThresholdPolicy(0, name).leaves(even).all()
    assert score_of(certain, name).item() == 1
    assert ThresholdPolicy(1, name).leaves(certain).all()
    assert not ThresholdPolicy(math.inf, name).leaves(certain).any()


@pytest.mark.parametrize(
    "thresholds", [-0.1, 90, math.nan, -math.inf, (0.5, 1.5), (0.5, math.nan), "0.5", None, [[0.5, 0.6]], {0.5}, [None]]
)
def test_threshold_policy_refuses_other_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        ThresholdPolicy(thresholds)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, pd.Series])
def test_threshold_policy_keeps_any_sequence_as_a_tuple_of_floats(kind):
    policy = ThresholdPolicy(kind([0.75, 0.5]))
    assert policy == ThresholdPolicy((0.75, 0.5))
    assert hash(policy) == hash(ThresholdPolicy((0.75, 0.5)))
    assert [type(value) for value in policy.thresholds] == [float, float]
    assert ThresholdPolicy((1 - 1e-9, 0.1)).thresholds == (1 - 1e-9, 0.1)


def test_check_policy_compares_the_number_of_thresholds():
    for thresholds in ((0.5,), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="thresholds"):
            check_policy(ThresholdPolicy(thresholds), 3)
    check_policy(ThresholdPolicy((0.5, 0.5)), 3)
    check_policy(ThresholdPolicy(0.5), 7)
    check_policy(ThresholdPolicy(()), 1)


class Unchecked:
    def leaves(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[1], dtype=torch.bool)


@pytest.mark.parametrize("policy", [0.9, None, Unchecked()])
def test_check_policy_refuses_what_lacks_a_method(policy):
    with pytest.raises(TypeError, match=type(policy).__name__):
        check_policy(policy, 3)


@pytest.fixture
def predicted() -> Predictions:
    """Five exits, four images, by the classes that the exits predict."""
    of_images = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]])
    logits = nn.functional.one_hot(of_images.T, 2).float()
    return Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.arange(1, 6).double())


@pytest.mark.parametrize(
    ("policy", "exits"),
    [
        (PatiencePolicy(0), [0, 0, 0, 0]),
        (PatiencePolicy(1), [1, 2, 4, 3]),
        (PatiencePolicy(2), [2, 3, 4, 4]),
        (PatiencePolicy(9), [4, 4, 4, 4]),
        (AgreementPolicy(1), [0, 0, 0, 0]),
        (AgreementPolicy(2), [1, 2, 2, 2]),
        (AgreementPolicy(3), [2, 3, 4, 3]),
        (AgreementPolicy(5), [4, 4, 4, 4]),
    ],
)
def test_patience_and_agreement_by_hand(predicted, policy, exits):
    decisions = decide(predicted, policy)
    assert decisions.exit_index.tolist() == exits
    assert decisions.predicted.tolist() == [int(predicted.predicted[at, image]) for image, at in enumerate(exits)]


@settings(max_examples=50)
@given(predictions=tables(max_exits=6), count=st.integers(1, 6))
def test_patience_and_agreement_image_by_image(predictions, count):
    last = predictions.num_exits - 1
    patient, agreed = (decide(predictions, policy) for policy in (PatiencePolicy(count), AgreementPolicy(count)))
    for image, classes in enumerate(predictions.predicted.T.tolist()):
        runs = [index for index in range(count, last) if len(set(classes[index - count : index + 1])) == 1]
        assert patient.exit_index[image] == (runs[0] if runs else last)
        votes = [index for index in range(last) if classes[: index + 1].count(classes[index]) >= count]
        assert agreed.exit_index[image] == (votes[0] if votes else last)


@pytest.mark.parametrize("value", [-1, 1.5, "2", None])
def test_patience_and_agreement_refuse_other_counts(value):
    for policy in (PatiencePolicy, AgreementPolicy):
        with pytest.raises(ValueError, match=repr(value)):
            policy(value)
    with pytest.raises(ValueError, match="got 0"):
        AgreementPolicy(0)


def make_net(images: Tensor) -> MultiExitNet:
    """Five untrained exits, scaled so that each predicts all three classes with varied confidence."""
    torch.manual_seed(3)
    units = [nn.Sequential(nn.Conv2d(4 if index else 3, 4, 3, padding=1), nn.ReLU()) for index in range(5)]
    net = MultiExitNet(units, {index: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for index in range(5)}).eval()
    with torch.no_grad():
        for head, logits in zip(net.exits.values(), net(images), strict=True):
            scale = 1.5 / logits.std(0)
            head[1].weight *= scale[:, None]
            head[1].bias.sub_(logits.mean(0)).mul_(scale)
    return net


@pytest.mark.parametrize("batch_size", [1, 40])
@pytest.mark.parametrize("fallback", ["last", "most_confident"])
@pytest.mark.parametrize(
    "policy",
    [PatiencePolicy(1), AgreementPolicy(3), ThresholdPolicy(0.62, "ensemble"), ThresholdPolicy(0.62, "geometric")],
    ids=str,
)
def test_policies_agree_on_the_table_and_in_the_cascade(policy, fallback, batch_size):
    images = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net = make_net(images)
    with torch.no_grad():
        logits = torch.stack(net(images))
    predictions = Predictions(logits, torch.zeros(40, dtype=torch.int64), torch.arange(1, 6).double())
    decisions = decide(predictions, policy, fallback)
    assert len(decisions.exit_index.unique()) > 2  # otherwise this shows little
    assert 4 in decisions.exit_index
    cascade = Cascade(net, policy, fallback=fallback)
    results = [cascade(batch) for batch in images.split(batch_size)]
    assert torch.equal(torch.cat([result.exit_index for result in results]), decisions.exit_index)
    assert torch.equal(torch.cat([result.predicted for result in results]), decisions.predicted)


@pytest.fixture
def own_scores(monkeypatch):
    monkeypatch.setattr(policies, "_SCORES", dict(policies._SCORES))


@pytest.mark.usefixtures("own_scores")
def test_register_score_serves_choice_table_and_cascade():
    @register_score
    def energy(logits: Tensor) -> Tensor:
        return (logits.logsumexp(-1) / 10).sigmoid()

    net = MultiExitNet([nn.Flatten(), nn.Linear(12, 8)], {0: nn.Linear(12, 3), 1: nn.Linear(8, 3)}).eval()
    images = torch.randn(60, 3, 2, 2)
    with torch.no_grad():
        logits = torch.stack(net(images))
    table = Predictions(logits, logits[-1].argmax(-1), torch.tensor([1.0, 2.0]).double())

    choice = choose_thresholds(table, max_drop=0.3, score="energy")
    assert 0.5 < choice.relative_cost < 1  # some leave and some stay
    left_at = decide(table, choice.policy).exit_index
    assert torch.equal(left_at == 0, energy(logits[0]) >= choice.policy.thresholds)
    assert torch.equal(Cascade(net, choice.policy)(images).exit_index, left_at)


@pytest.mark.usefixtures("own_scores")
def test_register_score_refuses_a_taken_name_but_not_a_redefinition():
    for value in (0.25, 0.5):

        @register_score
        def constant(logits: Tensor, value: float = value) -> Tensor:
            return torch.full(logits.shape[:-1], value)

        assert score_of(torch.zeros(1, 2), "constant").item() == value
    constant.__name__ = "entropy"
    with pytest.raises(ValueError, match="'entropy'"):
        register_score(constant)
    assert policies._SCORES["entropy"] is certainty


@pytest.mark.usefixtures("own_scores")
@pytest.mark.parametrize(
    ("scored", "got"),
    [
        (lambda logits: logits.amax(-1), "4 to 9"),
        (lambda logits: logits.amax(), r"\(1, 2\), got \(\)"),
        (lambda logits: logits[..., 0] * math.nan, "nan to nan"),
    ],
)
def test_choose_thresholds_refuses_a_score_of_another_range_or_shape(scored, got):
    def own(logits: Tensor) -> Tensor:
        return scored(logits)

    register_score(own)
    logits = torch.tensor([[[4.0, 0.0], [9.0, 0.0]]]).expand(2, 2, 2)
    table = Predictions(logits, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).double())
    with pytest.raises(ValueError, match=got):
        choose_thresholds(table, max_drop=0.1, score="own")


def test_unknown_scores_are_refused():
    for use in (lambda: ThresholdPolicy(0.5, "luck"), lambda: score_of(torch.zeros(1, 2), "luck")):
        with pytest.raises(ValueError, match="'luck'"):
            use()
