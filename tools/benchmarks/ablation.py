"""Compare training variants, one change at a time: `python -m tools.benchmarks.ablation`.

A network with three exits is trained anew with one thing changed at a time, from the same seed and for the same number
of epochs, and measured on the validation split: accuracy of each exit, and what the cascade costs that may lose half a
point against the *unchanged* network's last exit, so that all are asked for the same accuracy. Each seed is a
comparison of its own. Interrupted, it goes on.

Narrow networks, and short runs: what helps here may not help a long one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from unittest import mock

import pandas as pd
import torch
import tyro

from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import accuracy_cost_curve
from eeutils.data import Augmentation, ImageData, load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.files import write_text
from eeutils.models import MultiExitNet, create_model, drop_exits
from eeutils.models.airnet import Whitening
from eeutils.models.registry import fitting_arguments
from eeutils.scoreboard import MAX_DROP, Spread
from eeutils.training import TrainConfig, choose_device, fit, optimizer, recipe
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.tables import frame_as_markdown


def _train_stem(net: MultiExitNet) -> None:
    """Train the filters of the stem from random ones, in place of whitening."""
    for stem in (module for module in net.modules() if isinstance(module, Whitening)):
        stem.weight.requires_grad_(True)
        stem.is_set.fill_(True)


@dataclass(frozen=True)
class Variant:
    """One change to the recipe or the network.

    Attributes:
        pool: the heads; None for those of `_HEADS`.
        config: changed fields of the training config.
        loss: changed fields of its loss.
        prepare: changes the new network.
        newton_schulz_steps: of Muon.
        backbone_first: half of the epochs for the plain network, the other half for all exits together.
    """

    pool: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    loss: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[MultiExitNet], object] | None = None
    newton_schulz_steps: int = 3
    backbone_first: bool = False


_ANYWHERE = {
    "half of the early losses from the last exit": Variant(loss={"distillation": 0.5}),
    "moving average of the weights": Variant(config={"average_decay": 0.998}),
    "equal weights of the losses": Variant(loss={"weights": (1.0, 1.0, 1.0)}),
    "backbone first, then all together": Variant(backbone_first=True),
}
# To train with `--recipe slim`: SGD, and all heads pyramids.
_RESNET18 = {
    "as it is": Variant(),
    "convolution in the first head": Variant(pool="conv+spp+spp"),
    "convolutions in both early heads": Variant(pool="conv+conv+spp"),
    "biases of norms 8 times as fast": Variant(config={"bias_learning_rate": 8.0}),
    **_ANYWHERE,
}
# To train with `--recipe muon`.
_AIRNET = {
    "as it is": Variant(),
    "no convolution in the first head": Variant(pool="spp"),
    "the maximum of the whole map in the last head": Variant(pool="conv+spp+max"),
    "SGD, rate 0.1, momentum 0.9": Variant(config={"optimizer": "sgd", "momentum": 0.9}),
    "filters at a rate of 0.08": Variant(config={"filter_learning_rate": 0.08}),
    "filters at a rate of 0.3": Variant(config={"filter_learning_rate": 0.3}),
    "momentum 0.85": Variant(config={"momentum": 0.85}),
    "five Newton-Schulz steps": Variant(newton_schulz_steps=5),
    "batches of 250": Variant(config={"batch_size": 250}),
    "biases at the rate of the rest": Variant(config={"bias_learning_rate": 1.0}),
    "a fifth of the run to warm up": Variant(config={"warmup": 0.2}),
    "a stem that is trained": Variant(prepare=_train_stem),
    "labels smoothed by 0.2": Variant(loss={"label_smoothing": 0.2}),
    "cutout of 12": Variant(config={"augmentation": Augmentation(translate=2, cutout=12)}),
    **_ANYWHERE,
}
_HEADS = {"resnet18_3exits": "spp", "airnet_3exits": "conv+spp+spp"}  # where a variant names none
VARIANTS = {"resnet18_3exits": _RESNET18, "airnet_3exits": _AIRNET}


@dataclass(frozen=True)
class Study:
    """Options: what to train, and where results go.

    Attributes:
        data: a data set of `eeutils.data.list_data()`.
        model: whose variants to train.
        width: channels of the first layer.
        recipe: of `eeutils.training.list_recipes()`.
        epochs: passes over the training split, each variant; by default the recipe's.
        seeds: of the weights and the batches.
        precision: of the training.
        device: where to train; by default a GPU if there is one.
        runs: folder of the trainings' checkpoints; finished ones are used as they are.
        results: folder for ablation.csv and ablation.md (of AirNet ablation_airnet).
    """

    data: str = "cifar10"
    model: Literal["resnet18_3exits", "airnet_3exits"] = "resnet18_3exits"
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
    variants = VARIANTS[study.model]
    trained = {
        seed: {name: predictions_of(study, variant, name, seed, data) for name, variant in variants.items()}
        for seed in study.seeds
    }
    table = pd.concat({seed: compare(each) for seed, each in trained.items()}, names=["seed"])
    out = study.results / ("ablation_airnet.md" if study.model == "airnet_3exits" else "ablation.md")
    write_text(out.with_suffix(".csv"), table.to_csv())
    publish(as_markdown(table), out)


def predictions_of(study: Study, variant: Variant, name: str, seed: int, data: ImageData) -> Predictions:
    """Predictions on the validation split of a variant trained now or earlier."""
    config = study.config(seed)
    config = replace(config, **variant.config, loss=replace(config.loss, **variant.loss))
    device = choose_device(study.device)
    folder = study.runs / study.model / f"{name.replace(' ', '_')}-s{seed}"
    torch.manual_seed(seed)
    shape = {"width": study.width, **fitting_arguments(len(data.classes), data.image_shape)}
    net = create_model(study.model, pool=variant.pool or _HEADS[study.model], **shape)
    if variant.prepare is not None:
        variant.prepare(net)
    with mock.patch.object(optimizer, "_NEWTON_SCHULZ_STEPS", variant.newton_schulz_steps):
        if variant.backbone_first:
            config = replace(config, epochs=max(1, config.epochs // 2))
            plain = drop_exits(net, net.exit_after[:-1])  # shares its weights
            fit(plain, data, config, checkpoint=folder / "backbone.pt", device=device)
        fit(net, data, config, checkpoint=folder / "checkpoint.pt", device=device)
    return predict(net, data.val, device=device)


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


if __name__ == "__main__":
    main()
