import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.risk import GUARANTEE_THRESHOLDS, RiskTest, choose_with_guarantee, measure_risk


@pytest.fixture
def table() -> Predictions:
    """Two exits, five images of class 0: exit 1 is wrong on the third and the last, exit 2 on the first and last."""
    first = [[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
    second = [[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]
    logits = torch.tensor([first, second], dtype=torch.float64).log().float()
    return Predictions(logits, torch.zeros(5, dtype=torch.int64), torch.tensor([1.0, 5.0]).double())


THRESHOLDS = (0.5, 0.85, 1.0, 0.75)
NO_LOSS, ONE_LOSS = 0.7**5, 0.7**5 + 5 * 0.3 * 0.7**4  # or fewer, of five images at a risk of 0.3


def test_risk_by_hand(table):
    tested = measure_risk(table, max_risk=0.3, thresholds=THRESHOLDS)
    assert tested.thresholds.tolist() == [1, 0.85, 0.75, 0.5]
    assert tested.risk.tolist() == pytest.approx([0, 0, 0.2, 0.2])
    assert tested.p_values.tolist() == pytest.approx([NO_LOSS, NO_LOSS, ONE_LOSS, ONE_LOSS])


@pytest.mark.parametrize(
    ("delta", "threshold", "accuracy", "cost"),
    [(NO_LOSS + 0.01, 0.85, 4 / 5, (1 + 1 + 5 + 5 + 5) / 25), (ONE_LOSS + 0.01, 0.5, 3 / 5, 1 / 5)],
)
def test_the_lowest_certified_threshold_is_chosen(table, delta, threshold, accuracy, cost):
    choice = choose_with_guarantee(table, 0.3, delta, thresholds=THRESHOLDS)
    assert choice.policy == ThresholdPolicy(threshold)
    assert choice.accuracy == pytest.approx(accuracy)
    assert choice.relative_cost == pytest.approx(cost)


def test_where_nothing_can_be_certified_nobody_leaves_early(table):
    choice = choose_with_guarantee(table, 0.3, NO_LOSS - 0.01, thresholds=THRESHOLDS)
    assert choice.policy == ThresholdPolicy(math.inf)
    assert choice.relative_cost == 1
    assert choice.accuracy == 3 / 5
    assert choose_with_guarantee(table, 0.3, thresholds=THRESHOLDS) == choice  # NO_LOSS is above 0.1, the default


def test_the_guarantee_is_for_the_score_that_is_asked_for(table):
    # Margins of exit 1 are 0.9, 0.8, 0.6, 0.4 and 0.2: at 0.5 the third leaves, which the last exit has right.
    choice = choose_with_guarantee(table, 0.3, NO_LOSS + 0.01, "margin", THRESHOLDS)
    assert choice.policy == ThresholdPolicy(0.75, "margin")
    nothing = choose_with_guarantee(table, 0.3, NO_LOSS - 0.01, "margin", THRESHOLDS)
    assert nothing.policy == ThresholdPolicy(math.inf, "margin")


def test_an_infinite_threshold_risks_nothing(table):
    tested = measure_risk(table, 0.3, thresholds=[0.75, math.inf])
    assert (tested.thresholds.tolist(), tested.risk.tolist()) == ([math.inf, 0.75], [0, pytest.approx(0.2)])


def test_the_walk_stops_at_the_first_failure():
    p_values = torch.tensor([0.01, 0.2, 0.01], dtype=torch.float64)
    tested = RiskTest(torch.tensor([1.0, 0.9, 0.8]), torch.zeros(3), p_values)
    assert [tested.certified(delta) for delta in (0.001, 0.01, 0.1, 0.3)] == [0, 1, 1, 3]


def test_a_network_with_one_exit_risks_nothing(table):
    one = Predictions(table.logits[:1], table.labels, table.costs[:1])
    assert measure_risk(one, 0.1).risk.tolist() == [0] * len(GUARANTEE_THRESHOLDS)
    assert choose_with_guarantee(one, 0.9, 0.5).relative_cost == 1


def test_the_default_thresholds_run_from_one_to_zero_and_are_close_near_one():
    steps = [before - after for before, after in itertools.pairwise(GUARANTEE_THRESHOLDS)]
    assert (GUARANTEE_THRESHOLDS[0], GUARANTEE_THRESHOLDS[-1]) == (1, 0)
    assert min(steps) > 0
    assert steps[0] < 1e-5 < 1e-2 < steps[-1]


@pytest.mark.parametrize("choose", [measure_risk, choose_with_guarantee])
def test_the_default_thresholds_are_named_and_not_spelt_out_in_the_help(choose, table):
    assert inspect.signature(choose).parameters["thresholds"].default is None
    assert "GUARANTEE_THRESHOLDS" in choose.__doc__
    assert str(choose(table, 0.3)) == str(choose(table, 0.3, thresholds=GUARANTEE_THRESHOLDS))


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 15), st.integers(2, 4)),
    seed=st.integers(0, 999),
    name=st.sampled_from(["confidence", "entropy", "margin", "ensemble", "geometric"]),
    coarse=st.booleans(),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_the_risk_is_what_decide_says_at_every_threshold(shape, seed, name, coarse, values):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 2
    if coarse:
        logits = logits.round()  # so that scores tie
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    predictions = Predictions(logits, labels, torch.arange(1, shape[0] + 1).double())
    thresholds = [*values, *score_of(logits, name).clamp(0, 1).flatten().tolist()]
    tested = measure_risk(predictions, 0.2, name, thresholds)
    for threshold, risk in zip(tested.thresholds.tolist(), tested.risk.tolist(), strict=True):
        left = decide(predictions, ThresholdPolicy(threshold, name)).predicted
        lost = (left != labels).long() - (~predictions.correct[-1]).long()
        assert risk == pytest.approx(float(lost.clamp_min(0).double().mean()))


MAX_RISK, DELTA, IMAGES, DRAWS = 0.05, 0.2, 200, 400
GRID = tuple(1 - step / 50 for step in range(26))


@pytest.fixture(scope="module")
def population() -> Predictions:
    """All images there are: the less sure exit 1, the likelier it is wrong; exit 2 is wrong now and then."""
    generator = torch.Generator().manual_seed(1)
    sure = torch.rand(3000, generator=generator) / 2 + 0.5
    wrong = torch.rand(2, 3000, generator=generator) < torch.stack([(1 - sure) * 0.8, torch.full_like(sure, 0.1)])
    probs = torch.stack([sure, torch.full_like(sure, 0.9)])
    named_first = torch.where(wrong, 1 - probs, probs)
    logits = torch.stack([named_first, 1 - named_first], dim=-1).log()
    return Predictions(logits, torch.zeros(3000, dtype=torch.int64), torch.tensor([1.0, 2.0]).double())


def test_the_guarantee_holds_over_many_draws_of_the_validation_images(population):
    whole = measure_risk(population, MAX_RISK, thresholds=GRID)
    true_risk = dict(zip(whole.thresholds.tolist(), whole.risk.tolist(), strict=True)) | {math.inf: 0.0}
    assert max(true_risk.values()) > 2 * MAX_RISK  # else there is nothing to control
    picks = torch.randint(3000, (DRAWS, IMAGES), generator=torch.Generator().manual_seed(2))

    guaranteed, measured_only = [], []
    for images in picks:
        drawn = population.take(images)
        guaranteed.append(choose_with_guarantee(drawn, MAX_RISK, DELTA, thresholds=GRID).policy.thresholds)
        tested = measure_risk(drawn, MAX_RISK, thresholds=GRID)
        measured_only.append(float(tested.thresholds[tested.risk <= MAX_RISK][-1]))

    def broken(thresholds: list[float]) -> int:
        return sum(true_risk[threshold] > MAX_RISK for threshold in thresholds)

    allowed = binom.ppf(0.9999, DRAWS, DELTA)  # of the draws, if the chance is delta in each
    assert broken(guaranteed) <= allowed
    assert broken(measured_only) > allowed  # what is measured alone promises nothing
    assert sum(threshold < 1 for threshold in guaranteed) > DRAWS / 2  # nor is it kept by never leaving


@pytest.mark.parametrize("value", [0, 1, -0.1, 5, math.nan])
def test_shares_and_probabilities_out_of_range_are_refused(table, value):
    with pytest.raises(ValueError, match=r"max_risk is a share of the images in \(0, 1\), got"):
        choose_with_guarantee(table, value, 0.1)
    with pytest.raises(ValueError, match=r"delta is a probability in \(0, 1\), got"):
        choose_with_guarantee(table, 0.1, value)


@pytest.mark.parametrize("thresholds", [[-0.1], [0.5, 1.1], [math.nan], [-math.inf], []])
def test_thresholds_that_make_no_sense_are_refused(table, thresholds):
    with pytest.raises(ValueError, match=r"thresholds must be one or more numbers in \[0, 1\]"):
        measure_risk(table, 0.1, thresholds=thresholds)


def test_an_unknown_score_is_refused(table):
    with pytest.raises(ValueError, match="unknown score 'luck'"):
        choose_with_guarantee(table, 0.1, 0.1, "luck")
