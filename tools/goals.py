"""Goals for the shipped networks on CIFAR-10's test images, and what they reach."""

import math
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
        pflop: the most compute that training may take, 1e15 operations.
    """

    what: str
    wanted: float
    networks: tuple[str, ...]
    measure: Callable[[Evaluation], Reached | None]
    pflop: float = math.inf


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


_CONV = "resnet18_3exits-conv+conv+spp-cifar10"
_SMALL = (f"{_CONV}-w16", "airnet_3exits-cifar10-w32")
_WIDE = (
    "resnet18-avg-cifar10",
    f"{_CONV}-e2+4",
    *(f"resnet18_{n}exits-{pool}-cifar10" for n in (3, 2) for pool in ("spp", "avg")),
)
_PLAIN, _EARLIER, _THREE_SPP, _THREE_AVG, _TWO_SPP, _TWO_AVG = _WIDE
_SLIM = (
    *(f"{_CONV}-w{width}" for width in (16, 24, 32)),
    "resnet18-conv+conv+conv+spp-cifar10-e1+3+5-w32",
    *(f"airnet_3exits-cifar10{width}" for width in ("", "-w32")),
)
_SDN = "resnet56_sdn-mixed-cifar10"

GOALS = (
    *(
        Goal(f"the {which} of three exits, for 0.17 PFLOP of training", wanted, _SMALL, at_exit(index), 0.17)
        for index, (which, wanted) in enumerate((("first", 86.0), ("second", 89.5), ("last", 91.0)))
    ),
    *(
        Goal(f"best last exit for {pflop:g} PFLOP of training", wanted, _SLIM, at_exit(-1), pflop)
        for pflop, wanted in ((1.0, 94.0), (3.5, 95.0))
    ),
    *(
        Goal(f"cascade at {macs} M", wanted, _SLIM, within_macs(1e6 * macs))
        for macs, wanted in ((60, 94.3), (40, 93.75), (30, 92.5))
    ),
    Goal("plain ResNet18, full width", 95.0, (_PLAIN,), at_exit(-1)),
    Goal("full width, the first of three pyramids", 85.0, (_THREE_SPP,), at_exit(0)),
    Goal("full width, the first of three averages", 75.0, (_THREE_AVG,), at_exit(0)),
    Goal("full width, the first of two pyramids", 92.0, (_TWO_SPP,), at_exit(0)),
    Goal("full width, the first of two averages", 92.0, (_TWO_AVG,), at_exit(0)),
    Goal("full width, cascade at 45 % of the cost", 94.6, _WIDE[1:], within_share(0.45)),
    *(
        Goal(f"ResNet56 SDN at {100 * budget:.0f} %", wanted, (_SDN,), within_share(budget))
        for budget, wanted in ((0.75, 93.0), (1.0, 93.5))
    ),
)

# Accuracy in percent over PFLOP of training, with test-time augmentation, which is worth about 0.8 points
# (github.com/KellerJordan/cifar10-airbench).
TRAINING_ANCHORS = {"airbench94": (0.29, 94.01), "airbench95": (1.4, 95.01), "airbench96": (3.1, 96.00)}
# Accuracy in percent over million multiply-adds of an image on average (Huang et al., ICLR 2018; Yang et al., CVPR
# 2020; Han et al., ECCV 2022).
INFERENCE_ANCHORS = {"MSDNet": (40, 93.75), "RANet": (50, 94.2), "L2W-DEN": (30, 94.75)}


def goals_board(
    evaluations: Mapping[str, Evaluation], pflop: Mapping[str, float], goals: tuple[Goal, ...] = GOALS
) -> pd.DataFrame:
    """One row per goal: target, cost limit, and the best network's mean over seeds.

    What none of a goal's networks can do is missing: they are "not trained", or what is asked is "out of reach".

    Args:
        evaluations: tables of trained networks by name.
        pflop: compute of their training, by the same names.
        goals: to look at.
    """
    seeds = defaultdict(list)
    for name, evaluation in evaluations.items():
        seeds[without_seed(name)].append(evaluation)
    rows = {goal.what: _row(goal, seeds, pflop) for goal in goals}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("goal")


def _row(goal: Goal, seeds: Mapping[str, list[Evaluation]], pflop: Mapping[str, float]) -> dict[str, float | str]:
    trained = [name for name in goal.networks if name in seeds]
    candidates = {name: _mean(goal, seeds[name]) for name in trained if pflop[name] <= goal.pflop}
    able = {name: reached for name, reached in candidates.items() if reached is not None}
    if not able:
        why = "out of reach" if trained else "not trained"
        return _cells(goal, Reached(np.nan, np.nan, np.nan, np.nan), np.nan, why)
    best = max(able, key=lambda name: able[name].validation)
    by = best if len(seeds[best]) == 1 else f"{best}, {len(seeds[best])} seeds"
    return _cells(goal, able[best], pflop[best], by)


def _cells(goal: Goal, reached: Reached, pflop: float, by: str) -> dict[str, float | str]:
    return {
        "wanted (%)": goal.wanted,
        "reached (%)": 100 * reached.accuracy,
        "for at most (M)": reached.allowed / 1e6,
        "spent (M)": reached.cost / 1e6,
        "training (PFLOP)": pflop,
        "by": by,
    }


def _mean(goal: Goal, evaluations: list[Evaluation]) -> Reached | None:
    """Mean over the seeds of one network; None if a seed cannot meet the budget."""
    reached = [goal.measure(evaluation) for evaluation in evaluations]
    if None in reached:
        return None
    return Reached(*np.mean([astuple(each) for each in reached], axis=0).tolist())
