"""Compare all places for early exits: `python -m tools.benchmarks.exit_placement`.

One ResNet18 is trained with an exit after every unit. Any choice of exits is then a part of its table of predictions,
with the costs of the chosen heads alone. For every single early exit and every pair two figures are computed on the
validation split: what the cascade costs on average when it may lose half a point against the last exit, and how
accurate it is within half the cost of the plain network. All early exits share one threshold: with one for each, pairs
would be flattered against single exits, as they would have more to overfit.

It ranks places; it does not say how good a network with just those exits would be: in this one all exits pull at the
backbone. And it is one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import tyro
from matplotlib.figure import Figure

from eeutils.analysis.costs import NetworkCosts, measure_costs
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import accuracy_cost_curve, choose_thresholds
from eeutils.data import load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.files import atomic_path, write_text
from eeutils.models import resnet18
from eeutils.models.registry import fitting_arguments
from eeutils.scoreboard import MAX_DROP
from eeutils.training import choose_device, fit, recipe
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.tables import markdown_table

BUDGET = 0.5
EARLY_UNITS = tuple(range(8))
# Where stages end, the obvious places; always among the rows that are shown.
_STAGE_ENDS = ("4", "2+4")


@dataclass(frozen=True)
class Placement:
    """Options: what to train, and where results go.

    Attributes:
        data: a data set of `eeutils.data.list_data()`.
        pool: how every exit pools its feature map.
        width: channels of the first layer.
        recipe: of `eeutils.training.list_recipes()`.
        epochs: passes over the training split.
        seed: of the weights and the batches.
        device: where to train; by default a GPU if there is one.
        run: folder of the training's checkpoint; a finished one is used as it is, an interrupted one goes on.
        results: folder for exit_placement.csv, .md and .png.
    """

    data: str = "cifar10"
    pool: str = "spp"
    width: int = 16
    recipe: str = "slim"
    epochs: int = 6
    seed: int = 0
    device: str | None = None
    run: Path = Path("runs/exit_placement")
    results: Path = RESULTS


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Train if need be, compare all placements, print the ranking and write it down."""
    options = tyro.cli(Placement, prog="python -m tools.benchmarks.exit_placement", description=__doc__, args=args)
    table = compare(*trained_table(options))
    write_text(options.results / "exit_placement.csv", table.to_csv(index=False))
    with atomic_path(options.results / "exit_placement.png") as temporary:
        draw(table).savefig(temporary, format="png", bbox_inches="tight")
    publish(best_rows(table), options.results / "exit_placement.md")


def trained_table(options: Placement) -> tuple[Predictions, NetworkCosts]:
    """Validation predictions of a network with an exit after every unit, and the cost of its parts."""
    device = choose_device(options.device)
    data = load_data(options.data)
    fitting = fitting_arguments(len(data.classes), data.image_shape)
    torch.manual_seed(options.seed)
    net = resnet18(width=options.width, pool=options.pool, exit_after=EARLY_UNITS, **fitting)
    config = recipe(options.recipe, epochs=options.epochs, seed=options.seed)
    fit(net, data, config, checkpoint=options.run / "checkpoint.pt", device=device)
    return predict(net, data.val, device=device), measure_costs(net, data.image_shape)


def compare(predictions: Predictions, costs: NetworkCosts) -> pd.DataFrame:
    """One row per choice of one or two early exits: fewest exits first, then cheapest first.

    Columns: `exit_after` ("2+4": after units 2 and 4), `early_exits`, `cost_at_drop` (of the plain network's),
    `accuracy_at_drop`, `accuracy_at_budget` (missing where the first exit alone costs more), `head_cost` (of all heads
    but the last; likewise of the plain network's).
    """
    *early, last = costs.exit_after
    plain = float(part_of(predictions, costs, (last,)).costs[-1])
    chosen = [places for count in (1, 2) for places in combinations(early, count)]
    rows = [_row(part_of(predictions, costs, (*places, last)), places, plain) for places in chosen]
    return pd.DataFrame(rows).sort_values(["early_exits", "cost_at_drop"], kind="stable", ignore_index=True)


def part_of(predictions: Predictions, costs: NetworkCosts, places: Sequence[int]) -> Predictions:
    """The same network's table with only the exits after the units `places`; other heads cost nothing."""
    kept = [costs.exit_after.index(place) for place in places]
    part = replace(
        costs, exit_macs=costs.exit_macs[kept], exit_params=costs.exit_params[kept], exit_after=tuple(places)
    )
    return Predictions(predictions.logits[kept], predictions.labels, part.cumulative_macs)


def best_rows(table: pd.DataFrame, count: int = 4) -> str:
    """The best placements of one early exit and of two, and the ends of stages, in Markdown."""
    best = table[(table.groupby("early_exits").cumcount() < count) | table["exit_after"].isin(_STAGE_ENDS)]
    return (
        markdown_table(
            [
                "early exits after units",
                f"cost at {100 * MAX_DROP:g} points lost (%)",
                f"accuracy at {BUDGET:.0%} of the cost (%)",
            ],
            ([row.exit_after, 100 * row.cost_at_drop, 100 * row.accuracy_at_budget] for row in best.itertuples()),
        )
        + "\n"
    )


def draw(table: pd.DataFrame) -> Figure:
    """Both figures of every placement: a pair where its row and column meet, a single exit on the diagonal."""
    titles = {
        "cost_at_drop": f"cost (%) at {100 * MAX_DROP:g} points lost",
        "accuracy_at_budget": f"accuracy (%) at {BUDGET:.0%} of the cost",
    }
    places = table["exit_after"].str.split("+")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        grid = pd.DataFrame({"first": places.str[0], "second": places.str[-1], "value": 100 * table[column]})
        sns.heatmap(grid.pivot(index="first", columns="second", values="value"), annot=True, fmt=".1f", ax=ax)
        ax.set(title=title, xlabel="later exit after unit", ylabel="earlier exit after unit")
    plt.close(figure)
    return figure


def _row(part: Predictions, places: Sequence[int], plain: float) -> dict[str, object]:
    full = float(part.costs[-1])
    cheap = choose_thresholds(part, max_drop=MAX_DROP)
    curve = accuracy_cost_curve(part)
    affordable = curve.accuracy[curve.cost <= BUDGET * plain]
    return {
        "exit_after": "+".join(map(str, places)),
        "early_exits": len(places),
        "cost_at_drop": cheap.relative_cost * full / plain,
        "accuracy_at_drop": cheap.accuracy,
        "accuracy_at_budget": float(affordable.max()) if len(affordable) else float("nan"),
        "head_cost": full / plain - 1,
    }


if __name__ == "__main__":
    main()
