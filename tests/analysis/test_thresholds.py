import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils import Predictions, ThresholdPolicy, choose_thresholds, decide
from eeutils.analysis import SDN_THRESHOLDS, accuracy_cost_curve, exit_rates_at, score_of
from tests.analysis.tables import random_table, right_with, tables

SCORES = st.sampled_from(["confidence", "entropy", "margin"])


def outcome(predictions: Predictions, thresholds, score: str = "confidence") -> tuple[float, float]:
    decisions = decide(predictions, ThresholdPolicy(thresholds, score))
    return decisions.accuracy, decisions.mean_cost


def candidates_of(predictions: Predictions, score: str) -> list[float]:
    """The thresholds that are searched."""
    return [*accuracy_cost_curve(predictions, score=score).thresholds.tolist(), math.inf]


def every_choice(predictions: Predictions, score: str) -> list[tuple[float, float]]:
    """Outcomes of all thresholds that differ in effect, exit by exit and in all combinations."""
    early = score_of(predictions.logits[:-1], score).clamp(0, 1)
    candidates = [[*sorted(set(scores.tolist())), math.inf] for scores in early]
    return [outcome(predictions, choice, score) for choice in itertools.product(*candidates)]


@pytest.fixture
def table() -> Predictions:
    """Confidence of exit 1 is .9 .8 .7 .6, and it is wrong on the third image; exit 2 is wrong on the last."""
    return right_with([[0.9, 0.8, 0.3, 0.6], [0.9, 0.9, 0.9, 0.1]], [1, 5])


def test_accuracy_cost_curve_by_hand(table):
    curve = accuracy_cost_curve(table, [0.95, 0.0, 0.65, 0.75])  # in the order given
    assert curve.thresholds.tolist() == pytest.approx([0.95, 0, 0.65, 0.75])
    assert curve.accuracy.tolist() == [0.75, 0.75, 0.5, 0.75]
    assert curve.cost.tolist() == [5, 1, 2, 3]
    assert curve.relative_cost.tolist() == [1, 0.2, 0.4, 0.6]
    assert accuracy_cost_curve(table, SDN_THRESHOLDS, "margin").score == "margin"


@given(predictions=tables(), score=SCORES, values=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_accuracy_cost_curve_and_exit_rates_at_agree_with_decide(predictions, score, values):
    ties = score_of(predictions.logits, score).clamp(0, 1).flatten().tolist()
    thresholds = [*values, 0.9, 0.0, 1.0, 1.0, math.inf, *ties]
    curve, rates = (sweep(predictions, thresholds, score) for sweep in (accuracy_cost_curve, exit_rates_at))
    assert curve.thresholds.tolist() == thresholds
    for index, threshold in enumerate(thresholds):
        decisions = decide(predictions, ThresholdPolicy(threshold, score))
        assert curve.accuracy[index].item() == pytest.approx(decisions.accuracy)
        assert curve.cost[index].item() == pytest.approx(decisions.mean_cost)
        assert rates[index].tolist() == pytest.approx(decisions.exit_rates)


def rising(num_images: int, first_right: int) -> Predictions:
    """Two exits; confidence of the first rises from image to image, and it is right from `first_right` on."""
    sure = torch.linspace(0.55, 0.99, num_images, dtype=torch.float64)
    right = torch.where(torch.arange(num_images) >= first_right, sure, 1 - sure)
    return right_with([right.tolist(), [0.9] * num_images], [1, 5])


def test_choose_thresholds_is_at_most_one_score_off_on_many_images():
    for num_images, first_right in ((998, 497), (1000, 500), (1000, 998)):
        choice = choose_thresholds(rising(num_images, first_right), max_drop=0.0, per_exit=True)
        leaving = num_images * (5 - 5 * choice.relative_cost) / 4
        possible = num_images - first_right  # with the threshold at the first right image's score
        assert leaving == pytest.approx(possible) or (num_images > 998 and leaving == pytest.approx(possible - 1))


@pytest.mark.parametrize("per_exit", [False, True])
def test_choose_thresholds_meets_goals_with_equality(per_exit):
    assert 0.8 - 0.1 > 0.7  # in floating point
    predictions = right_with([[0.9] * right + [0.1] * (10 - right) for right in (7, 8)], [1, 5])
    for drop, cost in ((0.1, 0.2), (0.09, 1), (1.0, 0.2)):
        assert choose_thresholds(predictions, max_drop=drop, per_exit=per_exit).relative_cost == cost
    assert 0.29 * 100 < 29  # in floating point
    predictions = right_with([[0.4], [0.9], [0.9]], [8, 29, 100])
    for share, accuracy in ((0.29, 1), (0.28, 0)):
        assert choose_thresholds(predictions, budget=share, per_exit=True).accuracy == accuracy


@pytest.mark.parametrize("per_exit", [False, True])
def test_choose_thresholds_switches_off_an_exit_that_is_certain_and_wrong(per_exit):
    wrong, right = [[0.0, 999.0]] * 2, [[9.0, 0.0]] * 2
    logits, costs = torch.tensor([wrong, right, right]), torch.tensor([1.0, 2.0, 9.0]).double()
    two, three = (Predictions(logits[:exits], torch.tensor([0, 0]), costs[:exits]) for exits in (2, 3))
    choice = choose_thresholds(two, max_drop=0.0, per_exit=per_exit)
    assert choice.policy.thresholds in (math.inf, (math.inf,))
    assert (choice.accuracy, choice.relative_cost) == (1, 1)
    assert choose_thresholds(three, max_drop=0.0, per_exit=True).relative_cost == pytest.approx(2 / 9)


@given(predictions=tables(), score=SCORES, max_drop=st.floats(0, 1), per_exit=st.booleans())
def test_choose_thresholds_keeps_the_accuracy_as_cheaply_as_any_shared_threshold(
    predictions, score, max_drop, per_exit
):
    choice = choose_thresholds(predictions, max_drop=max_drop, per_exit=per_exit, score=score)
    floor, full = float(predictions.accuracy[-1]) - max_drop - 1e-9, float(predictions.costs[-1])
    assert choice.accuracy >= floor
    outcomes = [outcome(predictions, threshold, score) for threshold in candidates_of(predictions, score)]
    cheapest = min(cost for accuracy, cost in outcomes if accuracy >= floor)
    assert choice.relative_cost * full <= cheapest * (1 + 1e-9)
    assert per_exit or choice.relative_cost * full == pytest.approx(cheapest)
    again = outcome(predictions, choice.policy.thresholds, score)
    assert again == pytest.approx((choice.accuracy, choice.relative_cost * full))


@given(predictions=tables(), score=SCORES, share=st.floats(0, 1), per_exit=st.booleans())
def test_choose_thresholds_keeps_the_budget_as_well_as_any_shared_threshold(predictions, score, share, per_exit):
    cheapest = float(predictions.relative_costs[0])
    budget = min(cheapest + share * (1 - cheapest), 1)
    choice = choose_thresholds(predictions, budget=budget, per_exit=per_exit, score=score)
    assert choice.relative_cost <= budget * (1 + 1e-9)
    outcomes = [outcome(predictions, threshold, score) for threshold in candidates_of(predictions, score)]
    ceiling = budget * float(predictions.costs[-1]) * (1 + 1e-9)
    assert choice.accuracy >= max(accuracy for accuracy, cost in outcomes if cost <= ceiling)


def billed(predictions: Predictions, share: float) -> Predictions:
    """Heads that cost `share` of what is between two exits."""
    heads = predictions.costs.diff(prepend=torch.zeros(1, dtype=torch.float64)) * share
    return replace(predictions, head_costs=heads)


@given(
    predictions=tables(max_exits=2),
    score=SCORES,
    max_drop=st.floats(0, 0.5),
    budget=st.floats(0.01, 1),
    share=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_choose_thresholds_is_exact_with_one_early_exit(predictions, score, max_drop, budget, share):
    predictions = billed(predictions, share)
    results, full = every_choice(predictions, score), float(predictions.costs[-1])
    floor = float(predictions.accuracy[-1]) - max_drop
    cheapest = min(cost for accuracy, cost in results if accuracy >= floor - 1e-9)
    choice = choose_thresholds(predictions, max_drop=max_drop, per_exit=True, score=score)
    assert choice.relative_cost * full == pytest.approx(cheapest)
    budget = max(budget, float(predictions.relative_costs[0]))
    best = max(accuracy for accuracy, cost in results if cost <= budget * full * (1 + 1e-9))
    assert choose_thresholds(predictions, budget=budget, score=score).accuracy == best


def test_choose_thresholds_with_geometric_rates_by_hand():
    """Exit 1 is right about the four images it is surest of, exit 2 about the next two as well, exit 3 about all."""
    first, second = [0.9, 0.8, 0.7, 0.6, 0.45, 0.48, 0.49], [0.6, 0.6, 0.6, 0.9, 0.8, 0.7, 0.4]
    table = right_with([first, second, [0.9] * 7], [1, 2, 4])
    # Half as many images at each exit as at the one before: 4, 2 and 1 of 7 cost 4 + 2 * 2 + 4 of 28.
    for goal in ({"budget": 0.45}, {"max_drop": 0.0}):
        choice = choose_thresholds(table, per_exit="geometric", **goal)
        assert choice.policy.thresholds == pytest.approx((0.6, 0.7))
        assert (choice.accuracy, choice.relative_cost) == (1, pytest.approx(12 / 28))
    assert choose_thresholds(table, budget=0.25, per_exit="geometric").relative_cost == 0.25


@given(tables(), st.sampled_from(["confidence", "ensemble"]), st.floats(0, 1))
def test_choose_thresholds_with_geometric_rates_keeps_both_goals(predictions, score, share):
    budget = float(predictions.relative_costs[0]) * (1 - share) + share
    spent = choose_thresholds(predictions, budget=budget, per_exit="geometric", score=score)
    kept = choose_thresholds(predictions, max_drop=share, per_exit="geometric", score=score)
    assert spent.relative_cost <= budget * (1 + 1e-9)
    assert kept.accuracy >= float(predictions.accuracy[-1]) - share - 1e-9


def test_choose_thresholds_takes_a_network_with_one_exit():
    one = random_table((1, 3, 2))
    assert accuracy_cost_curve(one).cost.tolist() == [1, 1]
    for goal in ({"max_drop": 0.0}, {"budget": 1.0}, {"max_drop": 0.0, "per_exit": True}):
        assert choose_thresholds(one, **goal).relative_cost == 1


@pytest.mark.parametrize(
    "goal",
    [
        {},
        {"max_drop": 0.1, "budget": 0.5},
        {"max_drop": -0.01},
        {"max_drop": math.nan},
        {"budget": 50},
        {"budget": 0.1},
    ],
)
def test_choose_thresholds_refuses_no_two_or_impossible_goals(table, goal):
    with pytest.raises(ValueError, match=r"max_drop|budget"):
        choose_thresholds(table, **goal)
    assert choose_thresholds(table, budget=0.2).relative_cost == 0.2


def mean_cost_by_hand(predictions: Predictions, thresholds: list[float]) -> float:
    """Every unit on the way, and the heads of those exits on the way that some image could leave at."""
    on = torch.tensor([*(threshold < math.inf for threshold in thresholds), True])
    exits = decide(predictions, ThresholdPolicy(thresholds)).exit_index
    units = predictions.costs - predictions.head_costs.cumsum(0)
    return float((units + (predictions.head_costs * on).cumsum(0))[exits].mean())


@given(tables(max_exits=4), st.floats(0, 0.9), st.data())
def test_decide_leaves_out_heads_that_are_switched_off(predictions, share, data):
    predictions, early = billed(predictions, share), predictions.num_exits - 1
    thresholds = data.draw(st.lists(st.sampled_from([0.0, 0.6, 0.9, math.inf]), min_size=early, max_size=early))
    cost = decide(predictions, ThresholdPolicy(thresholds)).mean_cost
    assert cost == pytest.approx(mean_cost_by_hand(predictions, thresholds))
    shared = accuracy_cost_curve(predictions, [0.6, math.inf]).cost.tolist()
    assert shared == pytest.approx([mean_cost_by_hand(predictions, [each] * early) for each in (0.6, math.inf)])
    in_all = decide(predictions, ThresholdPolicy(thresholds, "ensemble"))
    assert torch.equal(in_all.costs, predictions.costs)


def test_choose_thresholds_switches_off_exits_that_do_not_pay():
    """Each of seven early exits is right about one image in a hundred only."""
    sure = torch.full((8, 100), 0.4)
    sure[torch.arange(7), torch.arange(7)] = 0.99
    sure[7] = 0.9
    table = right_with(sure.tolist(), [0.11 * (index + 1) for index in range(8)])
    table = replace(table, head_costs=torch.tensor([0.01] * 7 + [0.0], dtype=torch.float64))
    choice = choose_thresholds(table, max_drop=0.0, per_exit=True)
    assert choice.relative_cost <= 1 - 0.07 / 0.88  # of the network without early exits
    assert math.inf in choice.policy.thresholds
