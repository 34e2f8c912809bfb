import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eeutils.analysis import policies
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import certainty, confidence, latest_score, margin, register_score, score_of
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.models import MultiExitNet

OWN, SHARED = ["confidence", "entropy", "margin"], ["ensemble", "geometric"]

shapes = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(2, 4))


def test_scores_by_hand():
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert confidence(logits).item() == pytest.approx(0.7)
    assert margin(logits).item() == pytest.approx(0.5)
    assert certainty(logits).item() == pytest.approx(1 - entropy / math.log(3), abs=1e-6)


@given(
    name=st.sampled_from(OWN),
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


def test_scores_that_count_in_earlier_exits_by_hand():
    logits = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]]).log()
    mean = [0.9, (0.1 + 0.6) / 2, (0.1 + 0.6 + 0.8) / 3]  # of the class that the exit names
    assert score_of(logits, "ensemble")[:, 0].tolist() == pytest.approx(mean)
    first, second = math.sqrt(0.9 * 0.4), math.sqrt(0.1 * 0.6)
    assert score_of(logits, "geometric")[:2, 0].tolist() == pytest.approx([0.9, second / (first + second)])


@settings(max_examples=30)
@given(shape=shapes, seed=st.integers(0, 999), name=st.sampled_from(SHARED))
def test_such_scores_do_not_depend_on_later_exits_nor_on_other_images(shape, seed, name):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2
    together = score_of(logits, name)
    assert ((together >= 0) & (together <= 1 + 1e-6)).all()
    for index in range(shape[0]):
        torch.testing.assert_close(score_of(logits[: index + 1], name)[-1], together[index], rtol=0, atol=0)
    one_by_one = torch.cat([score_of(logits[:, [image]], name) for image in range(shape[1])], dim=1)
    torch.testing.assert_close(one_by_one, together, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OWN + SHARED)
def test_the_latest_score_is_that_of_the_deepest_exit(name):
    logits = torch.randn(3, 5, 4) * 2
    for count in (1, 2, 3):
        assert torch.equal(latest_score(logits[:count], name), score_of(logits, name)[count - 1])


def test_an_unknown_score_is_refused_with_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown score 'patience'; choose from \['confidence', 'ensemble', 'entropy'"
    ):
        score_of(torch.zeros(1, 2), "patience")


@pytest.fixture
def own_scores(monkeypatch):
    monkeypatch.setattr(policies, "_SCORES", dict(policies._SCORES))


@pytest.mark.usefixtures("own_scores")
def test_a_score_of_ones_own_chooses_and_decides_on_the_table_and_live():
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
@pytest.mark.parametrize("name", ["entropy", "ensemble"])
def test_a_name_that_is_taken_is_refused(name):
    def score(logits: Tensor) -> Tensor:
        raise AssertionError("not this one")

    score.__name__, before = name, dict(policies._SCORES)
    with pytest.raises(ValueError, match=rf"'{name}' .* eeutils\.analysis\.policies already"):
        register_score(score)
    assert before == policies._SCORES


@pytest.mark.usefixtures("own_scores")
def test_a_score_of_ones_own_can_be_defined_anew():
    for value in (0.25, 0.5):

        @register_score
        def constant(logits: Tensor, value: float = value) -> Tensor:
            return torch.full(logits.shape[:-1], value)

        assert score_of(torch.zeros(1, 2), "constant").item() == value


@pytest.mark.usefixtures("own_scores")
@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (lambda logits: logits.amax(-1), r"scores must be in \[0, 1\], got 4 to 9; squash yours"),
        (lambda logits: logits.amax(), r"must make \(...\) of logits \(..., C\), but of \(1, 2, 2\) it made \(\)"),
        (lambda logits: logits[..., 0] * math.nan, r"got nan to nan"),
    ],
)
def test_a_score_of_ones_own_that_no_threshold_fits_is_refused(scored, message):
    def own(logits: Tensor) -> Tensor:
        return scored(logits)

    register_score(own)
    logits = torch.tensor([[[4.0, 0.0], [9.0, 0.0]]]).expand(2, 2, 2)
    table = Predictions(logits, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).double())
    with pytest.raises(ValueError, match=message):
        choose_thresholds(table, max_drop=0.1, score="own")


def test_an_unknown_score_is_told_how_to_become_known():
    with pytest.raises(ValueError, match=r"\], or add yours with register_score$"):
        score_of(torch.zeros(1, 2), "energy")
