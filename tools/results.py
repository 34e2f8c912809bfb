"""Recompute every published number from the shipped weights: `python -m tools.results` (or `make results`).

Runs each shipped network over the real validation and test images and compares with what the registry and the shipped
predictions say. Ensemble weights and thresholds are chosen on the shipped validation predictions: one image judged
differently may move a choice a long way. Fails if a published number cannot be reproduced; if all can, writes
`results/headline.md`, `results/scoreboard.md`, `results/shallow_deep.md`, `results/goals.md` and two figures, and
refreshes what README.md and results/README.md show of them. Of a network whose weights are too large to ship, the
shipped predictions are taken as they are.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files: there may be no screen

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eeutils.analysis.predictions import predict
from eeutils.data import load_data
from eeutils.device import choose_device, unrounded_convolutions
from eeutils.errors import message_instead_of_traceback
from eeutils.files import write_text
from eeutils.plots import plot_curves, use_style
from eeutils.scoreboard import (
    Evaluation,
    over_seeds,
    scoreboard,
    within_budget,
)
from eeutils.weights import WeightEntry, default_registry, load_predictions, load_weights
from tools.arguments import refuse_arguments
from tools.figures import log_axis
from tools.goals import INFERENCE_ANCHORS, TRAINING_ANCHORS, goals_board
from tools.pages import RESULTS, refresh_pages
from tools.tables import frame_as_markdown, shallow_deep_board
from tools.training_compute import training_pflop

TOLERANCE = 0.0005
"""Share of the images that may be judged otherwise on another machine: 5 of 10,000, from rounding in another order."""

BOARD_TOLERANCE = 0.002
"""The same for ensembles and cascades, where the rounding of several exits comes together."""

MISTAKES_TOLERANCE = 0.01
"""The same for shares of a network's mistakes, which are a tenth of the images."""

_TOLERANCES = dict.fromkeys(("destructive share (%)", "from", "to"), MISTAKES_TOLERANCE)
_FEW_EXITS = 4
_GOALS = "goals.md"  # of means over seeds already
_TRAINING = "training (PFLOP)"

HEADLINE = {
    "resnet18-avg-cifar10-w16": "ResNet18, width 16, no early exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w16": "ResNet18, width 16, 3 exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w24": "ResNet18, width 24, 3 exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w32": "ResNet18, width 32, 3 exits",
    "resnet18-avg-cifar10": "ResNet18, full width, no early exits",
    "resnet18_3exits-spp-cifar10": "ResNet18, full width, 3 exits",
    "airnet_3exits-cifar10-w32": "AirNet, width 32, 3 exits",
    "airnet_3exits-cifar10": "AirNet, 3 exits",
    "mobilenet_sdn-mixed-cifar10": "MobileNet, Shallow-Deep, 7 exits",
    "resnet56_sdn-mixed-cifar10": "ResNet56, Shallow-Deep, 7 exits",
}
"""Networks in the README's table, without their seeds, and their names there."""

# Columns of both boards and their titles in the headline.
_HEADLINE_COLUMNS = {
    _TRAINING: "PFLOP of training",
    "MACs (M)": "million multiply-adds",
    "last exit": "all images to the end",
    "at 50%": "half of the cost",
}

# In the figure, as far as they are trained; of several seeds the middle one at the last exit.
DRAWN = {
    "resnet18-avg-cifar10-w16": "plain ResNet18, width 16",
    "airnet_3exits-cifar10-w32": "AirNet, 3 exits, width 32",
    "airnet_3exits-cifar10": "AirNet, 3 exits, width 64",
    "resnet18_3exits-conv+conv+spp-cifar10-w16-s1": "ResNet18, 3 exits, width 16",
    "resnet18_3exits-conv+conv+spp-cifar10-w24": "ResNet18, 3 exits, width 24",
    "resnet18_3exits-conv+conv+spp-cifar10-w32": "ResNet18, 3 exits, width 32",
    "resnet18-conv+conv+conv+spp-cifar10-e1+3+5-w32": "ResNet18, 4 exits, width 32",
    "resnet18_3exits-spp-cifar10": "ResNet18, 3 exits, width 64",
    "resnet18_3exits-conv+conv+spp-cifar10-e2+4": "ResNet18, 3 earlier exits, width 64",
}


@message_instead_of_traceback()
def main(args: Sequence[str] = ()) -> int:
    """Recompute, compare and write; return the number of mismatches."""
    refuse_arguments("tools.results", __doc__, args)
    return compare_and_write()


def compare_and_write() -> int:
    """Recompute all recorded numbers and write the tables if they match; return the number of mismatches.

    Raises:
        ValueError: if the registry came with the package: then there is no repository to write to.
    """
    registry = default_registry()
    if registry.folder is None:
        raise ValueError("this registry came with the package; recompute the results in a clone of the repository")
    entries = [entry for entry in registry.entries if entry.has_results]
    if not entries:
        print("no trained weights in the registry", file=sys.stderr)
        return 1
    computed, published, mistakes = {}, {}, []
    for entry in entries:
        published[entry.name] = Evaluation(*(load_predictions(entry.name, split) for split in ("val", "test")))
        computed[entry.name] = _recompute(entry) if entry.weights else published[entry.name]
        mistakes += _mistakes(entry, computed[entry.name])
        accuracies = computed[entry.name].test.accuracy.tolist()
        print(f"{entry.name}: {' / '.join(f'{share:.2%}' for share in accuracies)}", flush=True)
    judged = {name: replace(run, test=computed[name].test) for name, run in published.items()}
    pflop = {entry.name: training_pflop(entry, registry) for entry in entries}
    boards, again = (boards_of(each, pflop) | {_GOALS: goals_board(each, pflop)} for each in (published, judged))
    for name, board in boards.items():
        mistakes += _differences(board, again[name])
    if mistakes:
        print("published numbers that do not come out:\n  " + "\n  ".join(mistakes), file=sys.stderr)
        return len(mistakes)
    goals = boards.pop(_GOALS)
    shown = {name: over_seeds(board) for name, board in boards.items()}
    shown |= {_GOALS: goals, "headline.md": headline_board(boards.values())}
    for name, board in shown.items():
        table = frame_as_markdown(board)
        write_text(RESULTS / name, table + "\n")
        print(f"\n{table}")
    drawn = {label: published[name] for name, label in DRAWN.items() if name in published}
    _draw(drawn, RESULTS / "accuracy_cost.png")
    _draw_compute(published, pflop, RESULTS / "accuracy_compute.png")
    refresh_pages()
    print("\nwritten to results/ and to the pages that show it")
    return 0


def boards_of(evaluations: Mapping[str, Evaluation], pflop: Mapping[str, float]) -> dict[str, pd.DataFrame]:
    """Tables of results/ by file name; networks with many exits have a separate table.

    Args:
        evaluations: tables of trained networks by name.
        pflop: compute of their training, by the same names.
    """
    many = {name: run for name, run in evaluations.items() if run.test.num_exits > _FEW_EXITS}
    few = {name: run for name, run in evaluations.items() if name not in many}
    boards = {"scoreboard.md": scoreboard(few)} | ({"shallow_deep.md": shallow_deep_board(many)} if many else {})
    return {name: board.assign(**{_TRAINING: board.index.map(pflop)}) for name, board in boards.items()}


def headline_board(boards: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Select the networks of `HEADLINE` and their main columns from `boards`, one row for all seeds of each.

    Args:
        boards: one row per seed, as `scoreboard` and `shallow_deep_board` return them.
    """
    together = pd.concat([board.reindex(columns=list(_HEADLINE_COLUMNS)) for board in boards])
    board = over_seeds(together.rename(columns=_HEADLINE_COLUMNS))
    board = board.loc[[name for name in HEADLINE if name in board.index]]
    seeds = board.pop("seeds")
    named = {name: HEADLINE[name] + (f" ({count} seeds)" if count > 1 else "") for name, count in seeds.items()}
    return board.rename(index=named)


def _recompute(entry: WeightEntry) -> Evaluation:
    net, data = load_weights(entry.name, choose_device()), load_data(entry.data)
    with unrounded_convolutions():  # as they were published
        return Evaluation(predict(net, data.val), predict(net, data.test))


def _mistakes(entry: WeightEntry, computed: Evaluation) -> list[str]:
    """List accuracies and costs of `entry` that do not match."""
    wrong = [
        f"{entry.name}, exit {number} on {split}: {there:.2%} is published, {here:.2%} came out"
        for split, predictions in (("val", computed.val), ("test", computed.test))
        for number, (there, here) in enumerate(
            zip(entry.accuracy[split], predictions.accuracy.tolist(), strict=True), 1
        )
        if abs(there - here) > TOLERANCE
    ]
    costs = computed.test.costs.tolist()
    if list(entry.macs) != costs:
        wrong.append(f"{entry.name}: multiply-adds {list(entry.macs)} are published, {costs} came out")
    return wrong


def _differences(published: pd.DataFrame, computed: pd.DataFrame) -> list[str]:
    """List numbers of a table, in percent or millions, that do not match; NaN matches NaN."""
    published = published.select_dtypes("number")
    computed = computed.reindex_like(published)
    tolerances = 100 * np.array([_TOLERANCES.get(column, BOARD_TOLERANCE) for column in published])
    alike = ((published - computed).abs() <= tolerances) | (published.isna() & computed.isna())
    return [
        f"{name}, {column}: {published.loc[name, column]:.2f} is published, {computed.loc[name, column]:.2f} came out"
        for name in alike.index
        for column in alike
        if not alike.loc[name, column]
    ]


def halves(evaluations: Iterable[Evaluation]) -> list[tuple[float, float]]:
    """Mean cost in millions and test accuracy in percent at half of the cost, for networks that can meet it."""
    within = filter(None, (within_budget(run, 0.5) for run in evaluations))
    return [(test.mean_cost / 1e6, 100 * test.accuracy) for _, test in within]


def _draw(evaluations: dict[str, Evaluation], path: Path) -> None:
    use_style()
    ax = plot_curves({name: run.test for name, run in evaluations.items()}, plt.subplots(figsize=(8.5, 5))[1])
    chosen = _mark_halves(ax, evaluations.values(), "chosen for half of the cost")
    ax.legend(
        handles=[*ax.get_legend().legend_handles, chosen], fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    ax.set(title="CIFAR-10 test accuracy against what an image costs on average")
    ax.set_xlabel(f"{ax.get_xlabel()}, on a logarithmic scale")
    log_axis(ax)
    ax.figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(ax.figure)


def _draw_compute(evaluations: dict[str, Evaluation], pflop: Mapping[str, float], path: Path) -> None:
    """Draw accuracy over the compute of training and over that of an image, with public results beside ours."""
    training, inference = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")[1]
    last = {name: 100 * float(run.test.accuracy[-1]) for name, run in evaluations.items()}
    ours = {"color": "tab:blue", "marker": "o", "linestyle": "none", "label": "networks here, last exit"}
    training.plot([pflop[name] for name in last], list(last.values()), **ours)
    inference.plot([float(run.test.costs[-1]) / 1e6 for run in evaluations.values()], list(last.values()), **ours)
    several = (run for run in evaluations.values() if run.test.num_exits > 1)
    _mark_halves(inference, several, "networks here, for half of their cost")
    for ax, anchors in ((training, TRAINING_ANCHORS), (inference, INFERENCE_ANCHORS)):
        ax.plot(
            *np.array(list(anchors.values())).T, "*", color="tab:orange", markersize=11, label="published elsewhere"
        )
        for name, place in anchors.items():
            ax.annotate(name, place, xytext=(-7, 3), textcoords="offset points", fontsize=8, ha="right")
        ax.legend(fontsize=8, loc="lower right")
        log_axis(ax)
    training.set(xlabel="compute of training (PFLOP)", ylabel="test accuracy (%)", title="What training costs")
    inference.set(xlabel="multiply-adds of an image, on average (million)", title="What an image costs")
    training.figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(training.figure)


def _mark_halves(ax: Axes, evaluations: Iterable[Evaluation], label: str) -> Line2D:
    points = np.array(halves(evaluations)).reshape(-1, 2)
    return ax.plot(*points.T, "kD", markersize=5, label=label)[0]


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))  # 256 of them would look like none
