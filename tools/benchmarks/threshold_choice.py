"""Test how well ways of choosing thresholds hold on new images: `python -m tools.benchmarks.threshold_choice`.

A network's validation images are cut into halves at random, again and again. Thresholds that may lose half a point, or
spend a budget, are chosen on one half in several ways and judged on the other. The test split has no part in it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pandas as pd
import torch
import tyro

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import Policy, ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.risk import choose_with_guarantee
from eeutils.analysis.thresholds import Choice, accuracy_cost_curve, choose_thresholds
from eeutils.errors import message_instead_of_traceback
from eeutils.scoreboard import MAX_DROP
from eeutils.weights import load_predictions
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.tables import markdown_table


@dataclass(frozen=True)
class Study:
    """Options: which networks, how many cuts.

    Attributes:
        weights: names of `eeutils.weights.list_weights()`.
        repeats: cuts into halves.
        out: the report.
    """

    weights: tuple[str, ...] = (
        "resnet18_3exits-spp-cifar10-w16",
        "resnet18_3exits-conv+conv+spp-cifar10-w32",
        "resnet18_sdn-mixed-cifar10-w16",
        "vgg16_sdn-mixed-cifar10-w16",
        "resnet56_sdn-mixed-cifar10",
        "airnet_3exits-cifar10",
    )
    repeats: int = 20
    out: Path = RESULTS / "threshold_choice.md"

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ValueError(f"repeats must be 2 or more, got {self.repeats}")


Way = Callable[[Predictions], Choice]

FOR_ACCURACY: dict[str, Way] = {
    "one threshold for all exits": partial(choose_thresholds, max_drop=MAX_DROP),
    "one for each exit": partial(choose_thresholds, max_drop=MAX_DROP, per_exit=True),
    "geometric exit rates": partial(choose_thresholds, max_drop=MAX_DROP, per_exit="geometric"),
    "with a guarantee (90 %)": partial(choose_with_guarantee, max_risk=MAX_DROP),
    "with a guarantee on the gap (90 %)": partial(choose_with_guarantee, max_drop=MAX_DROP),
}


def all_of_it(validation: Predictions, budget: float) -> Choice:
    """The shared threshold that spends the budget, whatever its accuracy."""
    curve = accuracy_cost_curve(validation)
    highest = curve.thresholds[curve.relative_cost <= budget].max()
    return Choice.of(ThresholdPolicy(float(highest)), validation)


FOR_BUDGET: dict[str, Callable[[Predictions, float], Choice]] = {
    "one threshold that spends it": all_of_it,
    "one for each exit": lambda validation, budget: choose_thresholds(validation, budget=budget),
    "geometric exit rates": lambda validation, budget: choose_thresholds(
        validation, budget=budget, per_exit="geometric"
    ),
}
BUDGETS = (0.4, 0.5, 0.6, 0.75, 1.0)


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Cut, choose, judge; print and write the tables."""
    study = tyro.cli(Study, prog="python -m tools.benchmarks.threshold_choice", description=__doc__, args=args)
    networks = {name: load_predictions(name, "val") for name in study.weights}
    for_accuracy = {name: judged(each, FOR_ACCURACY, study.repeats) for name, each in networks.items()}
    num_exits = attrgetter("num_exits")
    by_exits = groupby(sorted(networks.values(), key=num_exits), key=num_exits)
    for_budget = {
        (exits, budget): cuts
        for exits, group in ((exits, list(group)) for exits, group in by_exits)
        for budget in BUDGETS
        if (cuts := _within(budget, group, study.repeats))
    }
    publish(accuracy_table(for_accuracy) + "\n" + budget_table(for_budget), study.out)


def judged(predictions: Predictions, ways: Mapping[str, Way], repeats: int) -> pd.DataFrame:
    """One row per cut and way: `lost_there`, `lost` on the other half and its `cost`, all as shares."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(repeats):
        order = torch.randperm(len(predictions.labels), generator=generator)
        here, new = (predictions.take(half) for half in order.tensor_split(2))
        for way, choose in ways.items():
            policy = choose(here).policy
            (lost_there, _), (lost, cost) = _outcome(here, policy), _outcome(new, policy)
            rows.append({"way": way, "lost_there": lost_there, "lost": lost, "cost": cost})
    return pd.DataFrame(rows)


def accuracy_table(networks: Mapping[str, pd.DataFrame]) -> str:
    """`judged` per network: means over cuts and their standard deviation, in percent."""
    rows = []
    for name, cuts in networks.items():
        for way, group in cuts.groupby("way", sort=False):
            mean, deviation = 100 * group.drop(columns="way").mean(), 100 * group["lost"].std()
            rows.append([f"`{name}`", way, mean["lost_there"], mean["lost"], deviation, mean["cost"]])
    head = ["network", f"{100 * MAX_DROP:g} points allowed to", "lost there", "lost on others", "spread", "cost (%)"]
    return markdown_table(head, rows) + "\n"


def budget_table(budgets: Mapping[tuple[int, float], list[pd.DataFrame]]) -> str:
    """`judged` per number of exits and budget, over the networks that can meet it: means over cuts and networks."""
    rows = []
    for (exits, budget), networks in budgets.items():
        for way, group in pd.concat(networks).groupby("way", sort=False):
            mean = 100 * group.drop(columns="way").mean()
            rows.append([exits, f"{budget:.0%}", len(networks), way, mean["lost_there"], mean["lost"], mean["cost"]])
    head = ["exits", "budget", "networks", "given to", "lost there", "lost on others", "cost (%)"]
    return markdown_table(head, rows) + "\n"


def _within(budget: float, networks: Iterable[Predictions], repeats: int) -> list[pd.DataFrame]:
    """Keep the networks whose first exit costs at most that share."""
    ways = {name: partial(choose, budget=budget) for name, choose in FOR_BUDGET.items()}
    return [judged(each, ways, repeats) for each in networks if float(each.relative_costs[0]) <= budget]


def _outcome(predictions: Predictions, policy: Policy) -> tuple[float, float]:
    """Share of the images lost against the last exit, and share of its cost."""
    decisions = decide(predictions, policy)
    return float(predictions.accuracy[-1]) - decisions.accuracy, decisions.relative_cost


if __name__ == "__main__":
    main()
