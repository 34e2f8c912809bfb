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
from eeutils.analysis.risk import (
    GUARANTEE_THRESHOLDS,
    RiskTest,
    choose_with_guarantee,
    measure_gap,
    measure_risk,
)
from tests.analysis.tables import from_probs, tables


@pytest.fixture
def table() -> Predictions:
    """Two exits, five images of class 0: exit 1 is wrong on the third and the last, exit 2 on the first and last."""
    first = [[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
    second = [[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]
    return from_probs([first, second], costs=[1, 5])


THRESHOLDS = (0.5, 0.85, 1.0, 0.75)
NO_LOSS, ONE_LOSS = 0.7**5, 0.7**5 + 5 * 0.3 * 0.7**4  # or fewer, of five images at a risk of 0.3


def test_measure_risk_by_hand(table):
    tested = measure_risk(table, max_risk=0.3, thresholds=THRESHOLDS)
    assert tested.thresholds.tolist() == [1, 0.85, 0.75, 0.5]
    assert tested.risk.tolist() == pytest.approx([0, 0, 0.2, 0.2])
    assert tested.p_values.tolist() == pytest.approx([NO_LOSS, NO_LOSS, ONE_LOSS, ONE_LOSS])
    assert measure_risk(table, 0.3, thresholds=[0.75, math.inf]).risk.tolist() == pytest.approx([0, 0.2])


def test_measure_gap_by_hand(table):
    tested = measure_gap(table, max_drop=0.3, thresholds=THRESHOLDS)
    assert tested.thresholds.tolist() == [1, 0.85, 0.75, 0.5]
    assert tested.risk.tolist() == pytest.approx([0, -0.2, 0, 0])  # at 0.85 the first image is corrected
    assert (tested.p_values > 0.3).all()  # five images prove nothing


@pytest.mark.parametrize(
    ("delta", "threshold", "accuracy", "cost"),
    [
        (NO_LOSS - 0.01, math.inf, 3 / 5, 1),
        (NO_LOSS + 0.01, 0.85, 4 / 5, (1 + 1 + 5 + 5 + 5) / 25),
        (ONE_LOSS + 0.01, 0.5, 3 / 5, 1 / 5),
    ],
)
def test_choose_with_guarantee_takes_the_lowest_certified_threshold(table, delta, threshold, accuracy, cost):
    choice = choose_with_guarantee(table, 0.3, delta, thresholds=THRESHOLDS)
    assert choice.policy == ThresholdPolicy(threshold)
    assert choice.accuracy == pytest.approx(accuracy)
    assert choice.relative_cost == pytest.approx(cost)


def test_choose_with_guarantee_uses_the_score_asked_for(table):
    # Margins of exit 1 are 0.9, 0.8, 0.6, 0.4 and 0.2: at 0.5 the third leaves, which the last exit has right.
    choice = choose_with_guarantee(table, 0.3, NO_LOSS + 0.01, "margin", THRESHOLDS)
    assert choice.policy == ThresholdPolicy(0.75, "margin")


def test_certified_stops_at_the_first_failure():
    p_values = torch.tensor([0.01, 0.2, 0.01], dtype=torch.float64)
    tested = RiskTest(torch.tensor([1.0, 0.9, 0.8]), torch.zeros(3), p_values)
    assert [tested.certified(delta) for delta in (0.001, 0.01, 0.1, 0.3)] == [0, 1, 1, 3]


@pytest.mark.parametrize("goal", ["max_risk", "max_drop"])
def test_guarantees_cost_everything_with_one_exit(table, goal):
    one = Predictions(table.logits[:1], table.labels, table.costs[:1])
    assert choose_with_guarantee(one, **{goal: 0.9}, delta=0.5).relative_cost == 1


def test_guarantee_thresholds_run_from_1_to_0_and_are_close_near_1():
    steps = [before - after for before, after in itertools.pairwise(GUARANTEE_THRESHOLDS)]
    assert (GUARANTEE_THRESHOLDS[0], GUARANTEE_THRESHOLDS[-1]) == (1, 0)
    assert 0 < steps[0] < 1e-5 < 1e-2 < steps[-1]
    assert min(steps) > 0


@settings(max_examples=40)
@given(
    predictions=tables(),
    name=st.sampled_from(["confidence", "entropy", "margin", "ensemble", "geometric"]),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_risk_and_gap_agree_with_decide_at_every_threshold(predictions, name, values):
    thresholds = [*values, *score_of(predictions.logits, name).clamp(0, 1).flatten().tolist()]
    risk, gap = (
        measure(predictions, 0.2, score=name, thresholds=thresholds) for measure in (measure_risk, measure_gap)
    )
    for index, threshold in enumerate(risk.thresholds.tolist()):
        left = decide(predictions, ThresholdPolicy(threshold, name)).predicted
        lost = ((left != predictions.labels).long() - (~predictions.correct[-1]).long()).double()
        assert risk.risk[index].item() == pytest.approx(float(lost.clamp_min(0).mean()))
        assert gap.risk[index].item() == pytest.approx(float(lost.mean()))


GRID = tuple(1 - step / 50 for step in range(26))


@pytest.fixture(scope="module")
def population() -> Predictions:
    """All images there are: the lower the confidence of exit 1, the likelier it is wrong; exit 2 errs at times."""
    generator = torch.Generator().manual_seed(1)
    sure = torch.rand(3000, generator=generator) / 2 + 0.5
    wrong = torch.rand(2, 3000, generator=generator) < torch.stack([(1 - sure) * 0.8, torch.full_like(sure, 0.1)])
    probs = torch.stack([sure, torch.full_like(sure, 0.9)])
    probs = torch.where(wrong, 1 - probs, probs)
    return from_probs(torch.stack([probs, 1 - probs], dim=-1).tolist(), costs=[1, 2])


@pytest.mark.parametrize(
    ("goal", "measure", "limit", "images"),
    [("max_risk", measure_risk, 0.05, 200), ("max_drop", measure_gap, 0.02, 800)],
)
def test_guarantees_hold_over_many_draws_of_the_validation_images(population, goal, measure, limit, images):
    delta, draws = 0.2, 150
    whole = measure(population, limit, thresholds=GRID)
    true_risk = dict(zip(whole.thresholds.tolist(), whole.risk.tolist(), strict=True)) | {math.inf: 0.0}
    assert max(true_risk.values()) > limit + 0.02  # otherwise there is nothing to control
    guaranteed, measured_only = [], []
    for picked in torch.randint(3000, (draws, images), generator=torch.Generator().manual_seed(2)):
        drawn = population.take(picked)
        choice = choose_with_guarantee(drawn, **{goal: limit}, delta=delta, thresholds=GRID)
        guaranteed.append(choice.policy.thresholds)
        tested = measure(drawn, limit, thresholds=GRID)
        measured_only.append(float(tested.thresholds[tested.risk <= limit][-1]))

    def broken(thresholds: list[float]) -> int:
        return sum(true_risk[threshold] > limit for threshold in thresholds)

    allowed = binom.ppf(0.9999, draws, delta)
    assert broken(guaranteed) <= allowed
    assert broken(measured_only) > allowed  # a measured risk alone promises nothing
    assert sum(threshold < 1 for threshold in guaranteed) > draws / 2  # nor is it kept by never leaving


@pytest.mark.parametrize("max_drop", [0.0, 0.02])
def test_measure_gap_p_values_are_valid_at_the_limit(max_drop):
    """Images whose true gap is exactly the largest accepted one: a p-value below 0.1 in at most a tenth of draws."""
    draws, images, spoilt = 300, 400, 0.06
    chance = torch.rand(draws, images, generator=torch.Generator().manual_seed(3))
    below = 0
    for uniform in chance:
        right = torch.stack([uniform >= spoilt, uniform < 1 - spoilt + max_drop])  # exit 1 spoils some, corrects others
        logits = torch.stack([right.double(), 1 - right.double()], dim=-1).float()
        table = Predictions(logits, torch.zeros(images, dtype=torch.int64), torch.tensor([1.0, 2.0]).double())
        below += int(measure_gap(table, max_drop, thresholds=[0.0]).p_values <= 0.1)
    assert below <= binom.ppf(0.9999, draws, 0.1)


def test_choose_with_guarantee_is_cheaper_for_a_drop_where_early_exits_also_correct(population):
    spoils = choose_with_guarantee(population, 0.02, thresholds=GRID)
    drops = choose_with_guarantee(population, max_drop=0.02, thresholds=GRID)
    assert drops.relative_cost < spoils.relative_cost
    assert drops.accuracy >= float(population.accuracy[-1]) - 0.02


@pytest.mark.parametrize("value", [1, -0.1, math.nan])
def test_guarantees_refuse_values_out_of_range(table, value):
    for wrong in ({"max_risk": value}, {"max_drop": value}, {"max_risk": 0.1, "delta": value}):
        with pytest.raises(ValueError, match=str(value)):
            choose_with_guarantee(table, **wrong)


@pytest.mark.parametrize("wrong", [{}, {"max_drop": 0.1, "max_risk": 0.1}, {"max_risk": 0.1, "thresholds": [0.5, 1.1]}])
def test_guarantees_refuse_no_two_or_impossible_goals(table, wrong):
    with pytest.raises(ValueError, match=r"max_drop|thresholds"):
        choose_with_guarantee(table, **wrong)
