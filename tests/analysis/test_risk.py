import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from eeutils import Predictions, ThresholdPolicy, choose_with_guarantee, decide
from eeutils.analysis import risk, score_of
from eeutils.analysis.risk import measure_gap, measure_risk
from tests.analysis.tables import from_probs, tables


@pytest.fixture
def table() -> Predictions:
    """Two exits, five images of class 0: exit 1 is wrong on the third and the last, exit 2 on the first and last."""
    first = [[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
    second = [[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]
    return from_probs([first, second], costs=[1, 5])


THRESHOLDS = (0.5, 0.85, 1.0, 0.75)
NO_LOSS, ONE_LOSS = 0.7**5, 0.7**5 + 5 * 0.3 * 0.7**4  # or fewer, of five images at a risk of 0.3


def measured(measure, predictions: Predictions, limit: float, thresholds, name: str = "confidence"):
    """Risks and p-values of early exits at each of `thresholds`."""
    scores = score_of(predictions.logits[:-1], name)
    return measure(predictions, scores, torch.tensor(thresholds, dtype=torch.float64), limit)


def test_measure_risk_by_hand(table):
    risk, p_values = measured(measure_risk, table, 0.3, (math.inf, 1, 0.85, 0.75, 0.5))
    assert risk.tolist() == pytest.approx([0, 0, 0, 0.2, 0.2])
    assert p_values.tolist() == pytest.approx([NO_LOSS] * 3 + [ONE_LOSS] * 2)


def test_measure_gap_by_hand(table):
    gap, p_values = measured(measure_gap, table, 0.3, (1, 0.85, 0.75, 0.5))
    assert gap.tolist() == pytest.approx([0, -0.2, 0, 0])  # at 0.85 the first image is corrected
    assert (p_values > 0.3).all()  # five images prove nothing


@pytest.mark.parametrize(
    ("delta", "threshold", "cost"),
    [(NO_LOSS - 0.01, math.inf, 1), (NO_LOSS + 0.01, 0.85, 17 / 25), (ONE_LOSS + 0.01, 0.5, 1 / 5)],
)
def test_choose_with_guarantee_takes_the_lowest_certified_threshold(table, delta, threshold, cost):
    choice = choose_with_guarantee(table, 0.3, delta, thresholds=THRESHOLDS)
    assert choice.policy == ThresholdPolicy(threshold)
    assert choice.relative_cost == pytest.approx(cost)


def test_choose_with_guarantee_uses_the_score_asked_for(table):
    # Margins of exit 1 are 0.9, 0.8, 0.6, 0.4 and 0.2: at 0.5 the third leaves, which the last exit has right.
    choice = choose_with_guarantee(table, 0.3, NO_LOSS + 0.01, "margin", THRESHOLDS)
    assert choice.policy == ThresholdPolicy(0.75, "margin")


def test_choose_with_guarantee_stops_at_the_first_threshold_that_fails(table, monkeypatch):
    monkeypatch.setattr(risk, "measure_risk", lambda *_: (None, torch.tensor([0.01, 0.2, 0.01, 0.01])))
    for delta, threshold in {0.001: math.inf, 0.01: 1.0, 0.1: 1.0, 0.3: 0.5}.items():
        assert choose_with_guarantee(table, 0.3, delta, thresholds=THRESHOLDS).policy.thresholds == threshold


@pytest.mark.parametrize("goal", ["max_risk", "max_drop"])
def test_choose_with_guarantee_costs_everything_with_one_exit(table, goal):
    one = Predictions(table.logits[:1], table.labels, table.costs[:1])
    assert choose_with_guarantee(one, **{goal: 0.9}, delta=0.5).relative_cost == 1


@given(
    predictions=tables(),
    name=st.sampled_from(["confidence", "entropy", "margin", "ensemble", "geometric"]),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_measure_risk_and_measure_gap_agree_with_decide(predictions, name, values):
    thresholds = [*values, *score_of(predictions.logits, name).clamp(0, 1).flatten().tolist()]
    (risks, _), (gaps, _) = (measured(each, predictions, 0.2, thresholds, name) for each in (measure_risk, measure_gap))
    for index, threshold in enumerate(thresholds):
        left = decide(predictions, ThresholdPolicy(threshold, name)).predicted
        lost = ((left != predictions.labels).long() - (~predictions.correct[-1]).long()).double()
        assert risks[index].item() == pytest.approx(float(lost.clamp_min(0).mean()))
        assert gaps[index].item() == pytest.approx(float(lost.mean()))


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
def test_choose_with_guarantee_holds_over_many_draws_of_the_validation_images(population, goal, measure, limit, images):
    delta, draws = 0.2, 100
    true_risk = dict(zip(GRID, measured(measure, population, limit, GRID)[0].tolist(), strict=True)) | {math.inf: 0.0}
    assert max(true_risk.values()) > limit + 0.02  # otherwise there is nothing to control
    guaranteed, measured_only = [], []
    for picked in torch.randint(3000, (draws, images), generator=torch.Generator().manual_seed(2)):
        drawn = population.take(picked)
        choice = choose_with_guarantee(drawn, **{goal: limit}, delta=delta, thresholds=GRID)
        guaranteed.append(choice.policy.thresholds)
        risks, _ = measured(measure, drawn, limit, GRID)
        measured_only.append(min(threshold for threshold, each in zip(GRID, risks, strict=True) if each <= limit))

    def broken(thresholds: list[float]) -> int:
        return sum(true_risk[threshold] > limit for threshold in thresholds)

    allowed = binom.ppf(0.9999, draws, delta)
    assert broken(guaranteed) <= allowed
    assert broken(measured_only) > allowed  # a measured risk alone promises nothing
    assert sum(threshold < 1 for threshold in guaranteed) > draws / 2  # nor is it kept by never leaving


@pytest.mark.parametrize(
    "wrong",
    [{}, {"max_drop": 0.1, "max_risk": 0.1}, {"max_drop": math.nan}, {"max_risk": 1}, {"max_drop": 0.1, "delta": -0.1}],
)
def test_choose_with_guarantee_refuses_no_two_or_impossible_goals(table, wrong):
    with pytest.raises(ValueError, match=r"max_drop|max_risk|thresholds|delta"):
        choose_with_guarantee(table, **wrong)
