import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eeutils.analysis.policies import (
    SDN_THRESHOLDS,
    AgreementPolicy,
    PatiencePolicy,
    ThresholdPolicy,
    decide,
    fallback_logits,
    score_of,
    with_fallback,
)
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import accuracy_cost_curve
from eeutils.cascade import Cascade
from eeutils.models import MultiExitNet

SHARED = ["ensemble", "geometric"]


def random_table(shape: tuple[int, int, int], seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 2
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    return Predictions(logits, labels, torch.arange(1, shape[0] + 1).double())


shapes = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(2, 4))


@pytest.fixture
def named() -> Predictions:
    """Five exits, four images, by the classes that the exits name."""
    of_images = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]])
    logits = nn.functional.one_hot(of_images.T, 2).float()
    return Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.arange(1, 6).double())


@pytest.mark.parametrize(
    ("policy", "exits"),
    [
        (PatiencePolicy(0), [0, 0, 0, 0]),
        (PatiencePolicy(1), [1, 2, 4, 3]),
        (PatiencePolicy(2), [2, 3, 4, 4]),
        (PatiencePolicy(3), [3, 4, 4, 4]),
        (PatiencePolicy(4), [4, 4, 4, 4]),
        (PatiencePolicy(9), [4, 4, 4, 4]),
        (AgreementPolicy(1), [0, 0, 0, 0]),
        (AgreementPolicy(2), [1, 2, 2, 2]),
        (AgreementPolicy(3), [2, 3, 4, 3]),
        (AgreementPolicy(5), [4, 4, 4, 4]),
    ],
)
def test_rules_that_look_back_by_hand(named, policy, exits):
    decisions = decide(named, policy)
    assert decisions.exit_index.tolist() == exits
    assert decisions.predicted.tolist() == [int(named.predicted[at, image]) for image, at in enumerate(exits)]


@settings(max_examples=50)
@given(shape=shapes, seed=st.integers(0, 999), patience=st.integers(0, 6))
def test_patience_image_by_image(shape, seed, patience):
    predictions = random_table(shape, seed)
    exits = decide(predictions, PatiencePolicy(patience)).exit_index.tolist()
    for classes, left in zip(predictions.predicted.T.tolist(), exits, strict=True):
        in_a_row, expected = 0, shape[0] - 1
        for index in range(shape[0] - 1):
            in_a_row = in_a_row + 1 if index and classes[index] == classes[index - 1] else 0
            if in_a_row >= patience:
                expected = index
                break
        assert left == expected


@settings(max_examples=50)
@given(shape=shapes, seed=st.integers(0, 999), count=st.integers(1, 6))
def test_agreement_image_by_image(shape, seed, count):
    predictions = random_table(shape, seed)
    decisions = decide(predictions, AgreementPolicy(count))
    for image, classes in enumerate(predictions.predicted.T.tolist()):
        early = range(shape[0] - 1)
        agreed = [index for index in early if max(map(classes[: index + 1].count, range(shape[2]))) >= count]
        assert decisions.exit_index[image] == (agreed[0] if agreed else shape[0] - 1)
        if agreed:  # and what it leaves with is what was agreed on
            assert classes[: agreed[0] + 1].count(int(decisions.predicted[image])) == count


@pytest.mark.parametrize("value", [-1, 1.5, "2", None])
def test_patience_and_votes_are_numbers_of_exits(value):
    with pytest.raises(ValueError, match="patience is a number of exits, 0 or more, got"):
        PatiencePolicy(value)
    with pytest.raises(ValueError, match="count is a number of exits, 1 or more, got"):
        AgreementPolicy(value)


def test_no_votes_at_all_are_not_enough():
    with pytest.raises(ValueError, match="1 or more, got 0"):
        AgreementPolicy(0)


def test_scores_that_count_in_earlier_exits_by_hand():
    logits = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]]).log()
    mean = [0.9, (0.1 + 0.6) / 2, (0.1 + 0.6 + 0.8) / 3]  # of the class that the exit names
    assert score_of(logits, "ensemble")[:, 0].tolist() == pytest.approx(mean)
    first, second = math.sqrt(0.9 * 0.4), math.sqrt(0.1 * 0.6)
    assert score_of(logits, "geometric")[:2, 0].tolist() == pytest.approx([0.9, second / (first + second)])


@settings(max_examples=30)
@given(shape=shapes, seed=st.integers(0, 999), name=st.sampled_from(SHARED))
def test_such_scores_do_not_depend_on_later_exits_nor_on_other_images(shape, seed, name):
    logits = random_table(shape, seed).logits
    together = score_of(logits, name)
    assert ((together >= 0) & (together <= 1 + 1e-6)).all()
    for index in range(shape[0]):
        torch.testing.assert_close(score_of(logits[: index + 1], name)[-1], together[index], rtol=0, atol=0)
    one_by_one = torch.cat([score_of(logits[:, [image]], name) for image in range(shape[1])], dim=1)
    torch.testing.assert_close(one_by_one, together, rtol=1e-6, atol=1e-7)


@settings(max_examples=30)
@given(shape=shapes, seed=st.integers(0, 999), name=st.sampled_from(SHARED), threshold=st.floats(0, 1))
def test_sweeps_work_on_such_scores_and_on_both_fallbacks(shape, seed, name, threshold):
    predictions = random_table(shape, seed)
    for fallback in ("last", "most_confident"):
        curve = accuracy_cost_curve(with_fallback(predictions, fallback), [threshold], name)
        decisions = decide(predictions, ThresholdPolicy(threshold, name), fallback)
        assert curve.accuracy.item() == pytest.approx(decisions.accuracy)
        assert curve.cost.item() == pytest.approx(decisions.mean_cost)


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
        lambda: Cascade(make_net(images()), PatiencePolicy(1), fallback="first"),
    ):
        with pytest.raises(ValueError, match=r"unknown fallback 'first'; choose from \['last', 'most_confident'\]"):
            use()


def test_the_papers_thresholds_sweep(table):
    assert list(SDN_THRESHOLDS) == sorted(set(SDN_THRESHOLDS))
    assert len(accuracy_cost_curve(table, SDN_THRESHOLDS).accuracy) == len(SDN_THRESHOLDS)


def images() -> Tensor:
    return torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def make_net(images: Tensor) -> MultiExitNet:
    """Five exits, untrained, moved and scaled so that each names all three classes, now surer and now less sure."""
    torch.manual_seed(3)
    units = [nn.Sequential(nn.Conv2d(4 if index else 3, 4, 3, padding=1), nn.ReLU()) for index in range(5)]
    net = MultiExitNet(units, {index: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for index in range(5)}).eval()
    with torch.no_grad():
        for head, logits in zip(net.exits.values(), net(images), strict=True):
            scale = 1.5 / logits.std(0)
            head[1].weight *= scale[:, None]
            head[1].bias.sub_(logits.mean(0)).mul_(scale)
    return net


@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("fallback", ["last", "most_confident"])
@pytest.mark.parametrize(
    "policy",
    [
        PatiencePolicy(1),
        PatiencePolicy(2),
        AgreementPolicy(3),
        ThresholdPolicy(0.62, "ensemble"),
        ThresholdPolicy(0.62, "geometric"),
    ],
    ids=str,
)
def test_the_cascade_and_the_table_agree(policy, fallback, batch_size):
    given = images()
    net = make_net(given)
    with torch.no_grad():
        logits = torch.stack(net(given))
    predictions = Predictions(logits, torch.zeros(40, dtype=torch.int64), torch.arange(1, 6).double())
    decisions = decide(predictions, policy, fallback)
    assert len(decisions.exit_index.unique()) > 2  # else this shows little
    assert 4 in decisions.exit_index
    cascade = Cascade(net, policy, fallback=fallback)
    results = [cascade(batch) for batch in given.split(batch_size)]
    assert torch.equal(torch.cat([result.exit_index for result in results]), decisions.exit_index)
    assert torch.equal(torch.cat([result.predicted for result in results]), decisions.predicted)


def test_in_the_cascade_the_fallbacks_differ_only_for_those_nobody_let_go():
    given = images()
    net = make_net(given)
    last, surest = (Cascade(net, PatiencePolicy(2), fallback=name)(given) for name in ("last", "most_confident"))
    changed = last.predicted != surest.predicted
    assert changed.any()
    assert (last.exit_index[changed] == 4).all()
    assert torch.equal(last.exit_index, surest.exit_index)
