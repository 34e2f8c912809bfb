"""Compare training variants, one change at a time: `python -m tools.benchmarks.ablation`.

A network with three exits is trained anew with one thing changed at a time, from the same weights with the same
batches, and measured on the validation split: accuracy of each exit, and what the cascade costs that may lose half a
point against the *unchanged* network's last exit, so that all are asked for the same accuracy. Each seed is a
comparison of its own. Interrupted, it goes on; what ships trained in just that way is not trained again.

Slim networks, and as short as the recipe: what helps here may not help a long run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import tyro

from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import accuracy_cost_curve
from eeutils.data import ImageData, load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.files import write_text
from eeutils.models import create_model, drop_exits
from eeutils.models.registry import fitting_arguments
from eeutils.scoreboard import MAX_DROP, Spread
from eeutils.train import TrainingRun, parsed
from eeutils.training import TrainConfig, choose_device, fit, recipe
from eeutils.weights import default_registry, load_predictions
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.publish import entry_name
from tools.tables import frame_as_markdown


@dataclass(frozen=True)
class Variant:
    """One change to the recipe or the network.

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
    "orthogonal steps on filters": Variant(config={"optimizer": "muon", "momentum": 0.6}),
    "labels smoothed by 0.2": Variant(loss={"label_smoothing": 0.2}),
    "equal weights of the losses": Variant(loss={"weights": (1.0, 1.0, 1.0)}),
}


@dataclass(frozen=True)
class Study:
    """Options: what to train, and where results go.

    Attributes:
        data: a data set of `eeutils.data.list_data()`.
        model: with three exits, of `eeutils.models.list_models()`.
        width: channels of the first layer.
        recipe: of `eeutils.training.list_recipes()`.
        epochs: passes over the training split, each variant; by default the recipe's.
        seeds: of the weights and the batches.
        precision: of the training.
        device: where to train; by default a GPU if there is one.
        runs: folder of the trainings' checkpoints; finished ones are used as they are.
        results: folder for ablation.csv and ablation.md.
    """

    data: str = "cifar10"
    model: str = "resnet18_3exits"
    width: int = 16
    recipe: str = "slim"
    epochs: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: str = "auto"
    device: str | None = None
    runs: Path = Path("runs/ablation")
    results: Path = RESULTS

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds are empty; name one at least")

    def config(self, seed: int) -> TrainConfig:
        """The unchanged recipe.

        Raises:
            ValueError: if it is unknown or a value makes no sense.
        """
        changes = {} if self.epochs is None else {"epochs": self.epochs}
        return recipe(self.recipe, seed=seed, precision=self.precision, **changes)


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Train all variants, compare them, write and print the table."""
    study = tyro.cli(Study, prog="python -m tools.benchmarks.ablation", description=__doc__, args=args)
    data = load_data(study.data)
    trained = {
        seed: {name: predictions_of(study, variant, name, seed, data) for name, variant in VARIANTS.items()}
        for seed in study.seeds
    }
    table = pd.concat({seed: compare(variants) for seed, variants in trained.items()}, names=["seed"])
    write_text(study.results / "ablation.csv", table.to_csv())
    publish(as_markdown(table), study.results / "ablation.md")


def predictions_of(study: Study, variant: Variant, name: str, seed: int, data: ImageData) -> Predictions:
    """Predictions of a trained variant on the validation split."""
    config = study.config(seed)
    config = replace(config, **variant.config, loss=replace(config.loss, **variant.loss))
    shipped = None if variant.backbone_first else _shipped(study, variant.pool, config)
    return _trained(study, variant, name, config, data) if shipped is None else shipped


def compare(trained: Mapping[str, Predictions]) -> pd.DataFrame:
    """One row per variant: accuracy of each exit, cost at the first variant's accuracy, and the whole network's cost.

    Costs are shares of the first variant's whole network. Where no threshold reaches that accuracy the cost is NaN.
    """
    unchanged = next(iter(trained.values()))
    asked = float(unchanged.accuracy[-1]) - MAX_DROP
    whole = float(unchanged.costs[-1])
    rows = {}
    for name, predictions in trained.items():
        curve = accuracy_cost_curve(predictions)
        enough = curve.accuracy >= asked
        rows[name] = {
            **{f"exit {number}": float(share) for number, share in enumerate(predictions.accuracy, 1)},
            "cost": float(curve.cost[enough].min()) / whole if enough.any() else float("nan"),
            "whole": float(predictions.costs[-1]) / whole,
        }
    return pd.DataFrame(rows).T.rename_axis("changed")


def as_markdown(table: pd.DataFrame) -> str:
    """The table in percent, one row per variant: mean and standard deviation over seeds."""
    titles = {"cost": "cost at half a point less (%)", "whole": "cost of the whole (%)"}
    percent = (100 * table).rename(columns=lambda column: titles.get(column, f"{column} (%)"))
    return frame_as_markdown(percent.groupby("changed", sort=False).agg(Spread.of)) + "\n"


def _shipped(study: Study, pool: str, config: TrainConfig) -> Predictions | None:
    """Shipped predictions of the network of this name, if it was trained by exactly this config."""
    run = TrainingRun(study.model, pool=pool, width=study.width, data=study.data, train=config)
    name, registry = entry_name(asdict(run)), default_registry()
    if name not in registry.names or not registry.entry(name).has_results:
        return None
    arguments = registry.entry(name).training_arguments
    return load_predictions(name, "val") if parsed(list(arguments)).train == config else None


def _trained(study: Study, variant: Variant, name: str, config: TrainConfig, data: ImageData) -> Predictions:
    """Predictions of a network trained here, now or earlier."""
    device = choose_device(study.device)
    folder = study.runs / f"{name.replace(' ', '_')}-s{config.seed}"
    shape = {"width": study.width, **fitting_arguments(len(data.classes), data.image_shape)}
    torch.manual_seed(config.seed)
    net = create_model(study.model, pool=variant.pool, **shape)
    if variant.backbone_first:
        config = replace(config, epochs=max(1, config.epochs // 2))
        plain = drop_exits(net, net.exit_after[:-1])  # shares its weights
        fit(plain, data, config, checkpoint=folder / "backbone.pt", device=device)
    fit(net, data, config, checkpoint=folder / "checkpoint.pt", device=device)
    return predict(net, data.val, device=device)


if __name__ == "__main__":
    main()
