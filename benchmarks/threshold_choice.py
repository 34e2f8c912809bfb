"""Which way of choosing thresholds keeps its promise on new images: `python -m benchmarks.threshold_choice`.

A network's validation images are cut into halves at random, again and again. Thresholds that may lose half a point are
chosen on one half, in three ways, and judged on the other. The test split has no part in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import tyro

from benchmarks.report import publish
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import Policy
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.risk import choose_with_guarantee
from eeutils.analysis.thresholds import choose_for_accuracy, choose_one_threshold
from eeutils.errors import message_instead_of_traceback
from eeutils.results import RESULTS
from eeutils.scoreboard import MAX_DROP
from eeutils.tables import markdown_table
from eeutils.weights import load_predictions


@dataclass(frozen=True)
class Study:
    """What to cut, and how often.

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
    )
    repeats: int = 20
    out: Path = RESULTS / "threshold_choice.md"

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ValueError(f"repeats must be 2 or more, got {self.repeats}")


WAYS: dict[str, Callable[[Predictions, float], Policy]] = {
    "one threshold for all exits": lambda validation, drop: choose_one_threshold(validation, drop).policy,
    "one for each exit": lambda validation, drop: choose_for_accuracy(validation, drop).policy,
    "with a guarantee (90 %)": lambda validation, drop: choose_with_guarantee(validation, drop).policy,
}


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Cut, choose, judge; print and write the table."""
    study = tyro.cli(Study, prog="python -m benchmarks.threshold_choice", description=__doc__, args=args)
    report = as_markdown({name: judged(load_predictions(name, "val"), study.repeats) for name in study.weights})
    publish(report, study.out)


def judged(predictions: Predictions, repeats: int) -> pd.DataFrame:
    """One row a cut and way: `lost_there`, `lost` on the other half and its `cost`, all as shares."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(repeats):
        order = torch.randperm(len(predictions.labels), generator=generator)
        here, new = (predictions.take(half) for half in order.tensor_split(2))
        for way, choose in WAYS.items():
            policy = choose(here, MAX_DROP)
            (lost_there, _), (lost, cost) = _outcome(here, policy), _outcome(new, policy)
            rows.append({"way": way, "lost_there": lost_there, "lost": lost, "cost": cost})
    return pd.DataFrame(rows)


def as_markdown(networks: dict[str, pd.DataFrame]) -> str:
    """Means over the cuts, in percent, and how far a single cut is from the mean."""
    rows = []
    for name, cuts in networks.items():
        for way, group in cuts.groupby("way", sort=False):
            mean, deviation = 100 * group.drop(columns="way").mean(), 100 * group["lost"].std()
            rows.append([f"`{name}`", way, mean["lost_there"], mean["lost"], deviation, mean["cost"]])
    head = ["network", f"{100 * MAX_DROP:g} points allowed to", "lost there", "lost on others", "spread", "cost (%)"]
    return markdown_table(head, rows) + "\n"


def _outcome(predictions: Predictions, policy: Policy) -> tuple[float, float]:
    """Share of the images lost against the last exit, and share of its cost."""
    decisions = decide(predictions, policy)
    return float(predictions.correct[-1].double().mean()) - decisions.accuracy, decisions.relative_cost


if __name__ == "__main__":
    main()
