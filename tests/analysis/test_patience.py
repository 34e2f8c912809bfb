import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import AgreementPolicy, PatiencePolicy, ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.cascade import Cascade
from eeutils.models import MultiExitNet


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
