"""What the shipped networks are to reach on CIFAR-10's test images, and how far they are."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eeutils.analysis.metrics import accuracy_per_exit
from eeutils.scoreboard import Evaluation, within_budget
from eeutils.weights import without_seed


@dataclass(frozen=True)
class Reached:
    """What a network comes to, where a goal looks.

    Attributes:
        validation: accuracy on validation, 0 to 1, to compare networks by.
        accuracy: on test, 0 to 1.
        cost: mean multiply-adds of a test image.
    """

    validation: float
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Goal:
    """A test accuracy, on average over seeds.

    Attributes:
        what: is measured, in words.
        wanted: accuracy in percent.
        networks: names of weights, without their seed; of those that are trained the one best on validation counts.
        measure: that on one seed's tables; None if the network cannot do it at all.
    """

    what: str
    wanted: float
    networks: tuple[str, ...]
    measure: Callable[[Evaluation], Reached | None]


def at_exit(index: int) -> Callable[[Evaluation], Reached]:
    """A goal for one exit taken alone."""

    def measure(evaluation: Evaluation) -> Reached:
        val, test = (float(accuracy_per_exit(table)[index]) for table in (evaluation.val, evaluation.test))
        return Reached(val, test, float(evaluation.test.costs[index]))

    return measure


def within_share(budget: float) -> Callable[[Evaluation], Reached | None]:
    """A goal for the cascade whose mean cost on validation is at most that share of the network's cost."""

    def measure(evaluation: Evaluation) -> Reached | None:
        spent = within_budget(evaluation, budget)
        if spent is None:
            return None
        choice, decisions = spent
        return Reached(choice.accuracy, decisions.accuracy, decisions.mean_cost)

    return measure


def within_macs(macs: float) -> Callable[[Evaluation], Reached | None]:
    """Likewise, at most so many multiply-adds."""

    def measure(evaluation: Evaluation) -> Reached | None:
        return within_share(min(1.0, macs / float(evaluation.val.costs[-1])))(evaluation)

    return measure


_PLAIN = "resnet18-avg-cifar10"
_BEST = "resnet18_3exits-conv+conv+spp-cifar10"
_EARLIER = f"{_BEST}-e2+4"
_SDN = "resnet56_sdn-mixed-cifar10"

GOALS = (
    Goal("plain ResNet18", 95.5, (_PLAIN,), at_exit(-1)),
    Goal("three exits, the first", 90.0, (_EARLIER,), at_exit(0)),
    Goal("three exits, the second", 94.0, (_EARLIER,), at_exit(1)),
    Goal("three exits, the last", 95.5, (_EARLIER,), at_exit(2)),
    Goal("cascade at 45 % of the cost", 95.4, (_BEST, _EARLIER), within_share(0.45)),
    Goal("slim cascade at 60 M", 94.0, tuple(f"{_BEST}-w{width}" for width in (16, 24, 32)), within_macs(60e6)),
    *(
        Goal(f"ResNet56 SDN at {budget:.0%}", wanted, (_SDN,), within_share(budget))
        for budget, wanted in ((0.25, 82.0), (0.5, 90.5), (0.75, 93.0), (1.0, 93.5))
    ),
)


def goals_board(evaluations: Mapping[str, Evaluation], goals: tuple[Goal, ...] = GOALS) -> pd.DataFrame:
    """A row a goal: what is wanted, what was reached and what it costs, on average over seeds, and by which network.

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
        return {"wanted (%)": goal.wanted, "reached (%)": np.nan, "MACs (M)": np.nan, "by": why}
    best = max(able, key=lambda name: able[name].validation)
    return {
        "wanted (%)": goal.wanted,
        "reached (%)": 100 * able[best].accuracy,
        "MACs (M)": able[best].cost / 1e6,
        "by": best if len(seeds[best]) == 1 else f"{best}, {len(seeds[best])} seeds",
    }


def _mean(goal: Goal, evaluations: list[Evaluation]) -> Reached | None:
    """Over the seeds of one network, which all can do it, or none."""
    reached = [goal.measure(evaluation) for evaluation in evaluations]
    if None in reached:
        return None
    return Reached(*np.mean([(each.validation, each.accuracy, each.cost) for each in reached], axis=0).tolist())
