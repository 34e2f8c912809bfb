import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eeutils import Cascade, MultiExitNet, Predictions, ThresholdPolicy, choose_thresholds, decide, predict
from eeutils.analysis import (
    AgreementPolicy,
    PatiencePolicy,
    certainty,
    confidence,
    margin,
    policies,
    register_score,
    score_of,
)
from eeutils.analysis.policies import check_policy, latest_score
from tests.analysis.tables import random_table, tables
from tests.toys import TwoInARow, assert_same_answers, random_split

ALONE, SHARED = ["confidence", "entropy", "margin"], ["ensemble", "geometric"]


def test_confidence_margin_and_certainty_by_hand():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert confidence(logits).item() == pytest.approx(0.7)
    assert margin(logits).item() == pytest.approx(0.5)
    assert certainty(logits).item() == pytest.approx(1 - entropy / math.log(3), abs=1e-6)


def test_score_of_several_exits_by_hand():
    logits = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]]).log()
    mean = [0.9, (0.1 + 0.6) / 2, (0.1 + 0.6 + 0.8) / 3]  # of the class that the exit predicts
    assert score_of(logits, "ensemble")[:, 0].tolist() == pytest.approx(mean)
    first, second = math.sqrt(0.9 * 0.4), math.sqrt(0.1 * 0.6)
    assert score_of(logits, "geometric")[:2, 0].tolist() == pytest.approx([0.9, second / (first + second)])


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(2, 12)),
    seed=st.integers(0, 999),
    scale=st.floats(0, 1e4),
    name=st.sampled_from(ALONE + SHARED),
)
def test_score_of_lies_in_0_to_1_and_ignores_other_images_and_later_exits(shape, seed, scale, name):
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


@pytest.mark.parametrize("thresholds", [-0.1, 90, -math.inf, (0.5, 1.5), (0.5, math.nan), "0.5", None, [[0.5, 0.6]]])
def test_threshold_policy_refuses_other_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        ThresholdPolicy(thresholds)
    with pytest.raises(ValueError, match="'luck'"):
        ThresholdPolicy(0.5, "luck")


def test_check_policy_compares_the_number_of_thresholds():
    for thresholds in ((0.5,), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="thresholds"):
            check_policy(ThresholdPolicy(thresholds), 3)
    check_policy(ThresholdPolicy((0.5, 0.5)), 3)
    check_policy(ThresholdPolicy(0.5), 7)
    check_policy(ThresholdPolicy(()), 1)
    with pytest.raises(TypeError, match="float"):
        check_policy(0.9, 3)


@given(predictions=tables(max_exits=6), count=st.integers(1, 6))
def test_patience_policy_and_agreement_policy_image_by_image(predictions, count):
    last = predictions.num_exits - 1
    patient, agreed = (decide(predictions, policy) for policy in (PatiencePolicy(count), AgreementPolicy(count)))
    for image, classes in enumerate(predictions.predicted.T.tolist()):
        runs = [index for index in range(count, last) if len(set(classes[index - count : index + 1])) == 1]
        assert patient.exit_index[image] == (runs[0] if runs else last)
        votes = [index for index in range(last) if classes[: index + 1].count(classes[index]) >= count]
        assert agreed.exit_index[image] == (votes[0] if votes else last)


@pytest.mark.parametrize("value", [-1, 1.5, "2", None])
def test_patience_policy_and_agreement_policy_refuse_other_counts(value):
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


@pytest.mark.parametrize("fallback", ["last", "most_confident"])
@pytest.mark.parametrize(
    "policy",
    [PatiencePolicy(1), AgreementPolicy(3), *(ThresholdPolicy(0.62, score) for score in SHARED), TwoInARow()],
    ids=str,
)
def test_policies_agree_on_the_table_and_in_the_cascade(policy, fallback):
    split = random_split(40, 4, num_classes=3)
    net = make_net(split.normalization(split.images))
    decisions = decide(predict(net, split), policy, fallback)
    assert len(decisions.exit_index.unique()) > 2  # otherwise this shows little
    assert 4 in decisions.exit_index
    assert_same_answers(Cascade(net, policy, fallback=fallback).run(split, batch_size=13), decisions)


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
def test_register_score_refuses_a_taken_name():
    def entropy(logits: Tensor) -> Tensor:
        return logits.amax(-1)

    with pytest.raises(ValueError, match="'entropy'"):
        register_score(entropy)
    assert policies._SCORES["entropy"] is certainty


@pytest.mark.usefixtures("own_scores")
@pytest.mark.parametrize(
    "scored", [lambda logits: logits.amax(-1), lambda logits: logits.amax(), lambda logits: logits[..., 0] * math.nan]
)
def test_choose_thresholds_refuses_a_score_of_another_range_or_shape(scored):
    def own(logits: Tensor) -> Tensor:
        return scored(logits)

    register_score(own)
    logits = torch.tensor([[[4.0, 0.0], [9.0, 0.0]]]).expand(2, 2, 2)
    table = Predictions(logits, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).double())
    with pytest.raises(ValueError, match="score"):
        choose_thresholds(table, max_drop=0.1, score="own")
