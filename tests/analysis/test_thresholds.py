import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eeutils.analysis import thresholds as module
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import SDN_THRESHOLDS, PatiencePolicy, ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.risk import choose_with_guarantee
from eeutils.analysis.thresholds import (
    Choice,
    accuracy_cost_curve,
    choose_thresholds,
    exit_rates_at,
)
from eeutils.models import resnet18

SCORES = st.sampled_from(["confidence", "entropy", "margin"])
FEW = [0.0, 1.0, 2.0, 400.0]  # so that scores tie, and some answers are sure beyond rounding


@st.composite
def tables(draw, max_exits: int = 4, max_images: int = 12) -> Predictions:
    num_exits, num_images = draw(st.integers(1, max_exits)), draw(st.integers(1, max_images))
    classes = draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    logits = torch.randn(num_exits, num_images, classes, generator=generator) * 2
    if draw(st.booleans()):
        logits = torch.tensor(FEW)[torch.randint(0, len(FEW), logits.shape, generator=generator)]
    labels = torch.randint(0, classes, (num_images,), generator=generator)
    costs = torch.tensor(draw(st.lists(st.integers(1, 100), min_size=num_exits, max_size=num_exits))).cumsum(0)
    return Predictions(logits, labels, costs.double())


def outcome(predictions: Predictions, thresholds, score_name: str = "confidence") -> tuple[float, float]:
    decisions = decide(predictions, ThresholdPolicy(thresholds, score_name))
    return decisions.accuracy, decisions.mean_cost


def candidates_of(predictions: Predictions, score_name: str) -> list[float]:
    """The thresholds that are searched among."""
    return [*accuracy_cost_curve(predictions, score=score_name).thresholds.tolist(), math.inf]


def every_choice(predictions: Predictions, score_name: str) -> list[tuple[float, float]]:
    """What all thresholds that make a difference come to, exit by exit and in all combinations."""
    candidates = [
        [*sorted(set(scores.clamp(0, 1).tolist())), math.inf]
        for scores in score_of(predictions.logits[:-1], score_name)
    ]
    return [outcome(predictions, choice, score_name) for choice in itertools.product(*candidates)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda table: choose_thresholds(table, max_drop=0.1, per_exit=True),
        lambda table: choose_thresholds(table, max_drop=0.1),
        lambda table: choose_thresholds(table, budget=0.5),
        lambda table: choose_with_guarantee(table, 0.1),
        lambda table: decide(table, ThresholdPolicy(0.5)),
    ],
)
def test_who_wants_a_table_says_how_to_make_one_of_a_network(ask):
    net = resnet18(width=2, exit_after=(4,))
    with pytest.raises(
        TypeError, match=r"MultiExitNet is no table of predictions; predict\(net, data\.val\) makes one"
    ):
        ask(net)


@pytest.fixture
def table() -> Predictions:
    """Two exits, four images of class 0; confidence at exit 1 .9 .8 .7 .6, wrong on the third; exit 2 on the last."""
    first = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    second = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]
    logits = torch.tensor([first, second], dtype=torch.float64).log().float()
    return Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 5.0]).double())


def test_a_curve_by_hand(table):
    curve = accuracy_cost_curve(table, [0.95, 0.0, 0.65, 0.75])  # in the order given
    assert curve.thresholds.tolist() == pytest.approx([0.95, 0, 0.65, 0.75])
    assert curve.accuracy.tolist() == [0.75, 0.75, 0.5, 0.75]
    assert curve.cost.tolist() == [5, 1, 2, 3]
    assert curve.relative_cost.tolist() == [1, 0.2, 0.4, 0.6]
    assert accuracy_cost_curve(table, [0.5], "margin").score == "margin"


@settings(max_examples=100, deadline=None)
@given(predictions=tables(), score_name=SCORES, values=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_curve_is_what_decide_says_at_every_threshold(predictions, score_name, values):
    ties = score_of(predictions.logits, score_name).clamp(0, 1).flatten().tolist()
    thresholds = [*values, 0.9, 0.0, 1.0, 1.0, math.inf, *ties]
    curve = accuracy_cost_curve(predictions, thresholds, score_name)
    assert curve.thresholds.tolist() == thresholds
    for threshold, accuracy, cost in zip(curve.thresholds, curve.accuracy, curve.cost, strict=True):
        assert (accuracy.item(), cost.item()) == pytest.approx(outcome(predictions, float(threshold), score_name))


@settings(max_examples=50, deadline=None)
@given(predictions=tables(), score_name=SCORES, values=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_exit_rates_are_what_decide_says_at_every_threshold(predictions, score_name, values):
    ties = score_of(predictions.logits, score_name).clamp(0, 1).flatten().tolist()
    thresholds = [*values, 0.0, 1.0, math.inf, *ties]
    rates = exit_rates_at(predictions, thresholds, score_name)
    assert rates.shape == (len(thresholds), predictions.num_exits)
    for threshold, rate in zip(thresholds, rates, strict=True):
        assert rate.tolist() == pytest.approx(decide(predictions, ThresholdPolicy(threshold, score_name)).exit_rates)


@settings(max_examples=60, deadline=None)
@given(predictions=tables(), score_name=SCORES, data=st.data())
def test_moving_one_threshold_is_what_decide_says(predictions, score_name, data):
    assume(predictions.num_exits > 1)
    early = predictions.num_exits - 1
    scores = score_of(predictions.logits[:-1], score_name)
    values = st.one_of(st.floats(0, 1), st.just(math.inf), st.sampled_from(scores.clamp(0, 1).flatten().tolist()))
    thresholds = data.draw(st.lists(values, min_size=early, max_size=early))
    moving = data.draw(st.integers(0, early - 1))
    candidates = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=5))).double()
    accuracy, cost = module._sweep_one(predictions, scores, torch.tensor(thresholds).double(), moving, candidates)
    for index, candidate in enumerate(candidates.tolist()):
        changed = (*thresholds[:moving], candidate, *thresholds[moving + 1 :])
        assert (accuracy[index].item(), cost[index].item()) == pytest.approx(outcome(predictions, changed, score_name))


@pytest.mark.parametrize("thresholds", [[-0.1], [0.5, 1.01], [math.nan], [-math.inf], []])
def test_curves_over_impossible_thresholds_are_refused(table, thresholds):
    with pytest.raises(ValueError, match=r"thresholds must be one or more numbers in \[0, 1\]"):
        accuracy_cost_curve(table, thresholds)
    with pytest.raises(ValueError, match=r"thresholds must be one or more numbers in \[0, 1\]"):
        exit_rates_at(table, thresholds)


def test_the_papers_thresholds_sweep(table):
    assert list(SDN_THRESHOLDS) == sorted(set(SDN_THRESHOLDS))
    assert len(accuracy_cost_curve(table, SDN_THRESHOLDS).accuracy) == len(SDN_THRESHOLDS)


def test_a_sweep_scores_the_table_once_however_many_thresholds(table, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "score_of", lambda *args: calls.append(1) or score_of(*args))
    accuracy_cost_curve(table, torch.linspace(0, 1, 1000))
    assert len(calls) == 1
    choose_thresholds(table, max_drop=0.1, per_exit=True)
    choose_thresholds(table, budget=0.5)
    assert len(calls) == 3


@given(predictions=tables(), score_name=SCORES)
def test_a_curve_runs_from_zero_to_one_through_all_scores_of_a_small_table(predictions, score_name):
    grid = accuracy_cost_curve(predictions, score=score_name).thresholds
    scores = score_of(predictions.logits[:-1], score_name).clamp(0, 1).flatten()
    assert grid.dtype == torch.float64
    assert grid.tolist() == sorted({0.0, 1.0, *scores.tolist()})


def rising(num_images: int, first_right: int) -> Predictions:
    """One early exit, surer of every image than of the one before, and right from image `first_right` on; two exits."""
    sure = torch.linspace(0.55, 0.99, num_images, dtype=torch.float64)
    named = torch.where(torch.arange(num_images) >= first_right, sure, 1 - sure)
    probs = torch.stack([named, torch.full_like(named, 0.9)])
    logits = torch.stack([probs, 1 - probs], -1).log().float()
    return Predictions(logits, torch.zeros(num_images, dtype=torch.int64), torch.tensor([1.0, 5.0]).double())


@pytest.mark.parametrize(("num_images", "missed"), [(997, 0), (998, 0), (999, 1), (1000, 2)])
def test_up_to_998_scores_are_all_in_the_grid(num_images, missed):
    predictions = rising(num_images, first_right=0)
    scores = predictions.confidence[0].double()
    assert len(set(scores.tolist())) == num_images
    grid = accuracy_cost_curve(predictions).thresholds
    assert int((~torch.isin(scores, grid)).sum()) == missed
    assert (grid.diff() > 0).all()
    assert len(grid) == num_images + 2 - missed


@pytest.mark.parametrize("num_images", [998, 999, 1000])
def test_with_one_early_exit_the_choice_is_the_best_there_is_on_998_images_and_one_score_off_on_more(num_images):
    for first_right in (*range(494, 504), num_images - 3, num_images - 2):
        predictions = rising(num_images, first_right)
        leaving = num_images * (5 - 5 * choose_thresholds(predictions, max_drop=0.0, per_exit=True).relative_cost) / 4
        possible = num_images - first_right  # with the threshold at the first right image's score
        assert leaving == pytest.approx(possible) or (num_images > 998 and leaving == pytest.approx(possible - 1))


def test_choosing_for_accuracy_by_hand(table):
    # At the last exit 3 of 4 are right. Leaving always keeps that, at a fifth of the cost.
    choice = choose_thresholds(table, max_drop=0.0, per_exit=True)
    assert (choice.accuracy, choice.relative_cost) == (0.75, 0.2)
    assert decide(table, choice.policy).exit_index.tolist() == [0, 0, 0, 0]


def test_choosing_for_accuracy_pays_for_what_the_first_exit_gets_wrong():
    first = [[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.6, 0.4]]
    logits = torch.tensor([first, [[0.9, 0.1]] * 4], dtype=torch.float64).log().float()
    predictions = Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 5.0]).double())
    exact = choose_thresholds(predictions, max_drop=0.0, per_exit=True)
    assert decide(predictions, exact.policy).exit_index.tolist() == [0, 1, 1, 1]
    assert exact.accuracy == 1
    lenient = choose_thresholds(predictions, max_drop=0.25, per_exit=True)
    assert decide(predictions, lenient.policy).exit_index.tolist() == [0, 0, 1, 1]
    assert lenient.accuracy == 0.75


def test_choosing_for_a_budget_by_hand(table):
    choice = choose_thresholds(table, budget=0.65)
    # Leaving always is as accurate as anything within the budget, and of such the cheapest is taken.
    assert (choice.accuracy, choice.relative_cost) == (0.75, 0.2)


def test_a_drop_is_met_with_equality():
    assert 0.8 - 0.1 > 0.7  # in floating point
    first, last = ([[0.9, 0.1]] * right + [[0.1, 0.9]] * (10 - right) for right in (7, 8))
    logits = torch.tensor([first, last], dtype=torch.float64).log().float()
    predictions = Predictions(logits, torch.zeros(10, dtype=torch.int64), torch.tensor([1.0, 5.0]).double())
    for per_exit in (True, False):
        choice = choose_thresholds(predictions, max_drop=0.1, per_exit=per_exit)
        assert (choice.accuracy, choice.relative_cost) == (0.7, 0.2)
        assert choose_thresholds(predictions, max_drop=0.09, per_exit=per_exit).relative_cost == 1
        assert choose_thresholds(predictions, max_drop=1.0, per_exit=per_exit).relative_cost == 0.2


def test_a_budget_is_met_with_equality():
    assert 0.29 * 100 < 29  # in floating point
    logits = torch.tensor([[[0.4, 0.6]], [[0.9, 0.1]], [[0.9, 0.1]]], dtype=torch.float64).log().float()
    predictions = Predictions(logits, torch.tensor([0]), torch.tensor([8.0, 29.0, 100.0]).double())
    assert (
        choose_thresholds(predictions, budget=0.29).accuracy,
        choose_thresholds(predictions, budget=0.28).accuracy,
    ) == (1, 0)


def test_an_exit_that_is_sure_and_wrong_is_switched_off():
    logits = torch.tensor([[[0.0, 999.0], [0.0, 999.0]], [[9.0, 0.0], [9.0, 0.0]]])
    predictions = Predictions(logits, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]).double())
    assert outcome(predictions, 1.0)[0] == 0
    choice = choose_thresholds(predictions, max_drop=0.0, per_exit=True)
    assert choice.policy.thresholds == (math.inf,)
    assert (choice.accuracy, choice.relative_cost) == (1, 1)


def test_one_bad_exit_is_switched_off_and_the_good_one_used():
    wrong, right = [[0.0, 999.0]] * 2, [[9.0, 0.0]] * 2
    predictions = Predictions(
        torch.tensor([wrong, right, right]), torch.tensor([0, 0]), torch.tensor([1.0, 2.0, 9.0]).double()
    )
    choice = choose_thresholds(predictions, max_drop=0.0, per_exit=True)
    assert (choice.accuracy, choice.relative_cost) == (1, pytest.approx(2 / 9))


@settings(max_examples=60, deadline=None)
@given(predictions=tables(), score_name=SCORES, max_drop=st.floats(0, 1))
def test_choosing_for_accuracy_keeps_the_floor_and_is_no_dearer_than_a_shared_threshold(
    predictions, score_name, max_drop
):
    choice = choose_thresholds(predictions, max_drop=max_drop, per_exit=True, score=score_name)
    floor = float(predictions.accuracy[-1]) - max_drop - 1e-9
    assert choice.accuracy >= floor
    shared = candidates_of(predictions, score_name)
    allowed = [cost for accuracy, cost in (outcome(predictions, t, score_name) for t in shared) if accuracy >= floor]
    assert choice.relative_cost * predictions.costs[-1] <= min(allowed) * (1 + 1e-9)
    assert outcome(predictions, choice.policy.thresholds, score_name) == pytest.approx(
        (choice.accuracy, choice.relative_cost * float(predictions.costs[-1]))
    )


@settings(max_examples=60, deadline=None)
@given(predictions=tables(), score_name=SCORES, share=st.floats(0, 1))
def test_choosing_for_a_budget_keeps_it_and_is_no_worse_than_a_shared_threshold(predictions, score_name, share):
    cheapest = float(predictions.relative_costs[0])
    budget = min(cheapest + share * (1 - cheapest), 1)
    choice = choose_thresholds(predictions, budget=budget, score=score_name)
    assert choice.relative_cost <= budget * (1 + 1e-9)
    shared = candidates_of(predictions, score_name)
    results = [outcome(predictions, threshold, score_name) for threshold in shared]
    ceiling = budget * float(predictions.costs[-1]) * (1 + 1e-9)
    assert choice.accuracy >= max(accuracy for accuracy, cost in results if cost <= ceiling)


@settings(max_examples=40, deadline=None)
@given(predictions=tables(max_exits=2), score_name=SCORES, max_drop=st.floats(0, 0.5), budget=st.floats(0.01, 1))
def test_with_one_early_exit_the_choice_is_the_best_there_is(predictions, score_name, max_drop, budget):
    results = every_choice(predictions, score_name)
    full = float(predictions.costs[-1])
    floor = float(predictions.accuracy[-1]) - max_drop
    cheapest = min(cost for accuracy, cost in results if accuracy >= floor - 1e-9)
    choice = choose_thresholds(predictions, max_drop=max_drop, per_exit=True, score=score_name)
    assert choice.relative_cost * full == pytest.approx(cheapest)
    budget = max(budget, float(predictions.relative_costs[0]))
    best = max(accuracy for accuracy, cost in results if cost <= budget * full * (1 + 1e-9))
    assert choose_thresholds(predictions, budget=budget, score=score_name).accuracy == best


@settings(max_examples=25, deadline=None)
@given(predictions=tables(max_exits=3, max_images=6), score_name=SCORES, max_drop=st.floats(0, 0.5))
def test_no_move_of_one_threshold_makes_a_choice_better(predictions, score_name, max_drop):
    choice = choose_thresholds(predictions, max_drop=max_drop, per_exit=True, score=score_name)
    floor = float(predictions.accuracy[-1]) - max_drop - 1e-9
    chosen = choice.policy.thresholds
    candidates = candidates_of(predictions, score_name)
    for index, candidate in itertools.product(range(len(chosen)), candidates):
        moved = (*chosen[:index], candidate, *chosen[index + 1 :])
        accuracy, cost = outcome(predictions, moved, score_name)
        assert accuracy < floor or cost >= choice.relative_cost * float(predictions.costs[-1]) * (1 - 1e-9)


def test_two_thresholds_beat_one_where_the_exits_are_not_equally_trustworthy():
    # Exit 1 errs at 0.9 of confidence, exit 2 is right at 0.6: a shared threshold has to distrust both.
    first = [[0.05, 0.95], [0.1, 0.9], [0.2, 0.8]]
    logits = torch.tensor([first, [[0.6, 0.4]] * 3, [[0.9, 0.1]] * 3], dtype=torch.float64).log().float()
    predictions = Predictions(logits, torch.zeros(3, dtype=torch.int64), torch.tensor([1.0, 2.0, 9.0]).double())
    shared = [outcome(predictions, t) for t in candidates_of(predictions, "confidence")]
    choice = choose_thresholds(predictions, max_drop=0.0, per_exit=True)
    assert (choice.accuracy, choice.relative_cost * 9) == (1, pytest.approx(2))
    assert min(cost for accuracy, cost in shared if accuracy == 1) == 9
    assert min(cost for _, cost in every_choice(predictions, "confidence")) == 1


def right_with(probs: list[list[float]], costs: list[float]) -> Predictions:
    """Exits that give `probs` (E, N) to the right one of two classes."""
    named = torch.tensor(probs, dtype=torch.float64)
    logits = torch.stack([named, 1 - named], -1).log().float()
    return Predictions(logits, torch.zeros(len(probs[0]), dtype=torch.int64), torch.tensor(costs).double())


def test_one_exits_threshold_is_moved_after_the_other():
    # The one mistake allowed is either exit's to make; both at once, as a shared threshold of 0.6 does, are too many.
    predictions = right_with([[0.4, 0.48], [0.45, 0.4], [0.9, 0.9]], [1.0, 2.0, 9.0])
    choice = choose_thresholds(predictions, max_drop=0.5, per_exit=True)
    assert decide(predictions, choice.policy).exit_index.tolist() == [0, 2]


def test_a_threshold_is_moved_again_when_another_ones_move_has_made_room():
    # A shared threshold spends the one mistake allowed at exit 3. Exit 2 needs none, and then exit 1 may have it.
    predictions = right_with(
        [[0.3, 0.39, 0.48], [0.55, 0.61, 0.62], [0.8, 0.29, 0.48], [0.9, 0.9, 0.9]], [1.0, 2.0, 4.0, 9.0]
    )
    choice = choose_thresholds(predictions, max_drop=0.34, per_exit=True)
    assert decide(predictions, choice.policy).exit_index.tolist() == [0, 1, 1]


@settings(deadline=None)
@given(tables(), st.sampled_from([0.0, 0.1, 0.3]), SCORES)
def test_one_threshold_is_the_cheapest_that_loses_no_more(predictions, max_drop, score_name):
    floor = float(predictions.accuracy[-1]) - max_drop - 1e-9
    choice = choose_thresholds(predictions, max_drop=max_drop, score=score_name)
    accuracy, cost = outcome(predictions, choice.policy.thresholds, score_name)
    assert accuracy >= floor
    assert (choice.accuracy, choice.relative_cost) == (accuracy, pytest.approx(cost / float(predictions.costs[-1])))
    for candidate in candidates_of(predictions, score_name):
        other, price = outcome(predictions, candidate, score_name)
        assert other < floor or price >= cost * (1 - 1e-9)


def test_one_threshold_with_nothing_to_gain_lets_nobody_leave():
    sure_of_the_wrong = torch.tensor([[[40.0, 0.0]] * 2, [[0.0, 40.0]] * 2])
    predictions = Predictions(sure_of_the_wrong, torch.ones(2, dtype=torch.int64), torch.tensor([1.0, 4.0]).double())
    choice = choose_thresholds(predictions, max_drop=0.0)
    assert (choice.policy.thresholds, choice.accuracy, choice.relative_cost) == (math.inf, 1.0, 1.0)


def test_a_network_with_one_exit_has_nothing_to_choose():
    one = Predictions(torch.tensor([[[1.0, 0.0]]]), torch.tensor([0]), torch.tensor([3.0]).double())
    assert accuracy_cost_curve(one).cost.tolist() == [3, 3]
    for choice in (
        choose_thresholds(one, max_drop=0.0, per_exit=True),
        choose_thresholds(one, budget=1.0),
        choose_thresholds(one, max_drop=0.0),
    ):
        assert (choice.accuracy, choice.relative_cost) == (1, 1)
    assert choose_thresholds(one, max_drop=0.0, per_exit=True).policy.thresholds == ()


@pytest.mark.parametrize("max_drop", [-0.01, 1.5, math.nan])
def test_an_impossible_drop_is_refused(table, max_drop):
    with pytest.raises(ValueError, match="max_drop"):
        choose_thresholds(table, max_drop=max_drop)


@pytest.mark.parametrize("budget", [0, -1, 50, math.nan])
def test_a_budget_that_is_no_share_is_refused(table, budget):
    with pytest.raises(ValueError, match="budget"):
        choose_thresholds(table, budget=budget)


def test_a_budget_below_the_first_exit_is_refused_with_its_price(table):
    with pytest.raises(ValueError, match=r"20.0%.*10.0%"):
        choose_thresholds(table, budget=0.1)
    assert choose_thresholds(table, budget=0.2).relative_cost == 0.2


def test_any_rule_can_be_a_choice(table):
    choice = Choice.of(PatiencePolicy(1), table)
    decisions = decide(table, choice.policy)
    assert (choice.accuracy, choice.relative_cost) == (decisions.accuracy, decisions.relative_cost)


@pytest.mark.parametrize("goals", [{}, {"max_drop": 0.1, "budget": 0.5}])
def test_choose_thresholds_takes_exactly_one_goal(table, goals):
    with pytest.raises(ValueError, match="exactly one"):
        choose_thresholds(table, **goals)


def test_choose_thresholds_shares_a_threshold_for_a_drop_and_has_one_per_exit_for_a_budget(table):
    assert isinstance(choose_thresholds(table, max_drop=0.1).policy.thresholds, float)
    assert isinstance(choose_thresholds(table, budget=0.5, per_exit=False).policy.thresholds, float)
    assert isinstance(choose_thresholds(table, max_drop=0.1, per_exit=True).policy.thresholds, tuple)
    assert isinstance(choose_thresholds(table, budget=0.5).policy.thresholds, tuple)
