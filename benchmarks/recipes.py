"""What helps the exits without hurting the end: `python -m benchmarks.recipes`.

The three-exit ResNet18 is trained anew with one thing changed at a time, from the same weights with the same batches,
and measured on the validation split: accuracy of each exit, and what the cascade costs that may lose half a point
against the *unchanged* network's last exit, so that all are asked for the same accuracy. Interrupted, it goes on.

One seed, slim and short: differences below half a point say nothing, and what helps a short run may not help a long
one.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import tyro

from benchmarks.report import publish
from eeutils.analysis.metrics import accuracy_per_exit
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import accuracy_cost_curve
from eeutils.data import ImageData, load_data
from eeutils.files import write_text
from eeutils.models import copy_backbone, resnet18, resnet18_3exits
from eeutils.results import RESULTS
from eeutils.scoreboard import MAX_DROP
from eeutils.tables import markdown_table
from eeutils.training import TrainConfig, choose_device, fit, recipe


@dataclass(frozen=True)
class Variant:
    """One thing changed.

    Attributes:
        pool: the heads.
        config: changed fields of the training config.
        loss: changed fields of its loss.
        backbone_first: half of the epochs for the plain network, the other half for all exits together.
    """

    pool: str = "spp"
    config: Mapping[str, object] = field(default_factory=dict)
    loss: Mapping[str, object] = field(default_factory=dict)
    backbone_first: bool = False


VARIANTS = {
    "as it is": Variant(),
    "convolution in the first head": Variant(pool="conv+spp+spp"),
    "convolutions in both early heads": Variant(pool="conv+conv+spp"),
    "half of the early losses from the last exit": Variant(loss={"distillation": 0.5}),
    "moving average of the weights": Variant(config={"average_decay": 0.998}),
    "biases of norms 8 times as fast": Variant(config={"bias_learning_rate": 8.0}),
    "backbone first, then all together": Variant(backbone_first=True),
    "equal weights of the losses": Variant(loss={"weights": (1.0, 1.0, 1.0)}),
}


@dataclass(frozen=True)
class Study:
    """What to train and where results go.

    Attributes:
        data: a data set of `eeutils.data.list_data()`.
        width: channels of the first layer.
        recipe: of `eeutils.training.list_recipes()`.
        epochs: passes over the training split, each variant.
        seed: of the weights and the batches.
        precision: of the training.
        device: "auto" takes a GPU if there is one.
        runs: folder of the trainings' checkpoints; finished ones are used as they are.
        results: folder for recipes.csv and recipes.md.
    """

    data: str = "cifar10"
    width: int = 16
    recipe: str = "slim"
    epochs: int = 6
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    runs: Path = Path("runs/recipes")
    results: Path = RESULTS


def main(args: list[str] | None = None) -> None:
    """Train all variants, compare them, write and print the table."""
    study = tyro.cli(Study, prog="python -m benchmarks.recipes", description=__doc__, args=args)
    try:
        data = load_data(study.data)
        table = compare({name: predictions_of(study, name, data) for name in VARIANTS})
        write_text(study.results / "recipes.csv", table.to_csv())
        publish(as_markdown(table), study.results / "recipes.md")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def predictions_of(study: Study, name: str, data: ImageData) -> Predictions:
    """What a variant says on the validation split after its training."""
    variant, device = VARIANTS[name], choose_device(None if study.device == "auto" else study.device)
    config = recipe(study.recipe, epochs=study.epochs, seed=study.seed, precision=study.precision)
    config = replace(config, **variant.config, loss=replace(config.loss, **variant.loss))
    shape = {"width": study.width, "num_classes": len(data.classes), "in_channels": data.train.images.shape[1]}
    torch.manual_seed(study.seed)
    net = resnet18_3exits(pool=variant.pool, **shape)
    folder = study.runs / name.replace(" ", "_")
    if variant.backbone_first:
        config = replace(config, epochs=max(1, study.epochs // 2))
        torch.manual_seed(study.seed)
        plain = resnet18(pool=variant.pool, **shape)
        _train(plain, data, config, folder / "backbone.pt", device)
        copy_backbone(net, plain)
    _train(net, data, config, folder / "checkpoint.pt", device)
    return predict(net, data.val, device=device)


def compare(trained: Mapping[str, Predictions]) -> pd.DataFrame:
    """One row a variant: accuracy of each exit, cost at the first variant's accuracy, and the whole network's cost.

    Costs are shares of the first variant's whole network. Where no threshold reaches that accuracy the cost is NaN.
    """
    unchanged = next(iter(trained.values()))
    asked = float(accuracy_per_exit(unchanged)[-1]) - MAX_DROP
    whole = float(unchanged.costs[-1])
    rows = {}
    for name, predictions in trained.items():
        curve = accuracy_cost_curve(predictions)
        enough = curve.accuracy >= asked
        rows[name] = {
            **{f"exit {number}": float(share) for number, share in enumerate(accuracy_per_exit(predictions), 1)},
            "cost": float(curve.cost[enough].min()) / whole if enough.any() else float("nan"),
            "whole": float(predictions.costs[-1]) / whole,
        }
    return pd.DataFrame(rows).T.rename_axis("changed")


def as_markdown(table: pd.DataFrame) -> str:
    """The table in percent."""
    exits = [column for column in table if column.startswith("exit")]
    asked = 100 * (table[exits[-1]].iloc[0] - MAX_DROP)
    head = ["changed", *(f"{name} (%)" for name in exits), f"cost at {asked:.2f}% (%)", "cost of the whole (%)"]
    return markdown_table(head, ([name, *(100 * row)] for name, row in table.iterrows())) + "\n"


def _train(net: torch.nn.Module, data: ImageData, config: TrainConfig, path: Path, device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fit(net, data, config, checkpoint=path, device=device)


if __name__ == "__main__":
    main()
