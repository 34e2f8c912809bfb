"""Goals for the shipped networks on CIFAR-10's test images, and what they reach."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd

from eeutils.scoreboard import Evaluation, within_budget
from eeutils.weights import without_seed


@dataclass(frozen=True)
class Reached:
    """A network's result for one goal.

    Attributes:
        validation: accuracy on validation, 0 to 1, to compare networks by.
        accuracy: on test, 0 to 1.
        cost: mean multiply-adds of a test image.
        allowed: the most it should be. A cascade keeps to it on validation images, and nearly so on test images.
    """

    validation: float
    accuracy: float
    cost: float
    allowed: float


@dataclass(frozen=True)
class Goal:
    """A test accuracy to reach, on average over seeds.

    Attributes:
        what: what is measured, in words.
        wanted: accuracy in percent.
        networks: names of weights, without their seed; of those trained, the one best on validation counts.
        measure: measures it on one seed's tables; None if the network cannot do it at all.
    """

    what: str
    wanted: float
    networks: tuple[str, ...]
    measure: Callable[[Evaluation], Reached | None]


def at_exit(index: int, share: float = 1.0) -> Callable[[Evaluation], Reached]:
    """A goal for one exit alone, placed at no more than `share` of the network's cost."""

    def measure(evaluation: Evaluation) -> Reached:
        val, test = (float(table.accuracy[index]) for table in (evaluation.val, evaluation.test))
        costs = evaluation.test.costs
        return Reached(val, test, float(costs[index]), share * float(costs[-1]))

    return measure


def within_share(budget: float) -> Callable[[Evaluation], Reached | None]:
    """A goal for the cascade whose mean validation cost is at most `budget`, a share of the network's cost."""

    def measure(evaluation: Evaluation) -> Reached | None:
        spent = within_budget(evaluation, budget)
        if spent is None:
            return None
        choice, decisions = spent
        allowed = budget * float(evaluation.test.costs[-1])
        return Reached(choice.accuracy, decisions.accuracy, decisions.mean_cost, allowed)

    return measure


def within_macs(macs: float) -> Callable[[Evaluation], Reached | None]:
    """A goal for the cascade whose mean validation cost is at most `macs` multiply-adds."""

    def measure(evaluation: Evaluation) -> Reached | None:
        return within_share(min(1.0, macs / float(evaluation.val.costs[-1])))(evaluation)

    return measure


_PLAIN = "resnet18-avg-cifar10"
_BEST = "resnet18_3exits-conv+conv+spp-cifar10"
_EARLIER = f"{_BEST}-e2+4"
_SLIM = (
    *(f"{_BEST}-w{width}" for width in (16, 24, 32)),
    "resnet18-conv+conv+conv+spp-cifar10-e1+3+5-w32",
    "airnet_3exits-cifar10",
)
_SDN = "resnet56_sdn-mixed-cifar10"

GOALS = (
    Goal("plain ResNet18", 95.5, (_PLAIN,), at_exit(-1)),
    Goal("three exits, the first, at 27 % of the cost", 90.0, (_EARLIER,), at_exit(0, 0.27)),
    Goal("three exits, the second, at 52 %", 94.0, (_EARLIER,), at_exit(1, 0.52)),
    Goal("three exits, the last", 95.5, (_EARLIER,), at_exit(2)),
    Goal("cascade at 45 % of the cost", 95.4, (_BEST, _EARLIER), within_share(0.45)),
    *(
        Goal(f"slim cascade at {macs} M", wanted, _SLIM, within_macs(1e6 * macs))
        for macs, wanted in ((60, 94.3), (40, 93.75), (30, 92.5))
    ),
    *(
        Goal(f"ResNet56 SDN at {100 * budget:.0f} %", wanted, (_SDN,), within_share(budget))
        for budget, wanted in ((0.25, 82.0), (0.5, 90.5), (0.75, 93.0), (1.0, 93.5))
    ),
)


def goals_board(evaluations: Mapping[str, Evaluation], goals: tuple[Goal, ...] = GOALS) -> pd.DataFrame:
    """One row per goal: target, cost limit, and the best network's mean over seeds.

    What none of a goal's networks can do is missing: they are "not trained", or what is asked is "out of reach".

    Args:
        evaluations: tables of trained networks by name.
        goals: to look at.
    """
    seeds = defaultdict(list)
    for name, evaluation in evaluations.items():
        seeds[without_seed(name)].append(evaluation)
    rows = {goal.what: _row(goal, seeds) for goal in goals}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("goal")


def _row(goal: Goal, seeds: Mapping[str, list[Evaluation]]) -> dict[str, float | str]:
    candidates = {name: _mean(goal, seeds[name]) for name in goal.networks if name in seeds}
    able = {name: reached for name, reached in candidates.items() if reached is not None}
    if not able:
        why = "out of reach" if candidates else "not trained"
        return _cells(goal, Reached(np.nan, np.nan, np.nan, np.nan), why)
    best = max(able, key=lambda name: able[name].validation)
    return _cells(goal, able[best], best if len(seeds[best]) == 1 else f"{best}, {len(seeds[best])} seeds")


def _cells(goal: Goal, reached: Reached, by: str) -> dict[str, float | str]:
    return {
        "wanted (%)": goal.wanted,
        "reached (%)": 100 * reached.accuracy,
        "for at most (M)": reached.allowed / 1e6,
        "spent (M)": reached.cost / 1e6,
        "by": by,
    }


def _mean(goal: Goal, evaluations: list[Evaluation]) -> Reached | None:
    """Mean over the seeds of one network; None if a seed cannot meet the budget."""
    reached = [goal.measure(evaluation) for evaluation in evaluations]
    if None in reached:
        return None
    return Reached(*np.mean([astuple(each) for each in reached], axis=0).tolist())
