"""Compare training variants, one change at a time: `python -m tools.benchmarks.ablation`.

AirNet with three exits is trained by the recipe `muon` with one thing changed at a time, from the same seed and for the
same compute, and measured on the validation split: accuracy of each exit, and what the cascade costs that may lose half
a point against the *unchanged* network's last exit, so that all are asked for the same accuracy. Each seed is a
comparison of its own. Interrupted, it goes on.

Narrow networks, and short runs: what helps here may not help a long one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import tyro
from torch import nn

from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import accuracy_cost_curve
from eeutils.data import Augmentation, ImageData, Split, load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.files import write_text
from eeutils.models import MultiExitNet, create_model, drop_exits
from eeutils.models.airnet import Whitening
from eeutils.models.registry import fitting_arguments
from eeutils.scoreboard import MAX_DROP, Spread
from eeutils.training import choose_device, fit, optimizer, recipe
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
    """One change to the recipe, the images or the network.

    Attributes:
        pool: the heads.
        config: changed fields of the training config.
        loss: changed fields of its loss.
        prepare: changes the new network.
        newton_schulz_steps: of Muon.
        backbone_first: half of the epochs for the plain network, the other half for all exits together.
        hard_images: train on the 70 % of the images with the highest loss of a proxy of a quarter of the width, for 5/4
            of the epochs.
    """

    pool: str = "conv+spp+spp"
    config: Mapping[str, object] = field(default_factory=dict)
    loss: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[MultiExitNet], object] | None = None
    newton_schulz_steps: int = 3
    backbone_first: bool = False
    hard_images: bool = False


_SMALL_IMAGES = {"small_images": 0.5}
VARIANTS = {
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
    "half of the early losses from the last exit": Variant(loss={"distillation": 0.5}),
    "moving average of the weights": Variant(config={"average_decay": 0.998}),
    "equal weights of the losses": Variant(loss={"weights": (1.0, 1.0, 1.0)}),
    "backbone first, then all together": Variant(backbone_first=True),
    "images of 24 pixels in the first half, more epochs": Variant(config=_SMALL_IMAGES),
    "the hardest 70 % of the images, more epochs": Variant(hard_images=True),
    # What helps alone, together.
    "momentum 0.85, labels smoothed, small images": Variant(
        config={"momentum": 0.85, **_SMALL_IMAGES}, loss={"label_smoothing": 0.2}
    ),
    "the same in batches of 250": Variant(
        config={"momentum": 0.85, "batch_size": 250, **_SMALL_IMAGES}, loss={"label_smoothing": 0.2}
    ),
}
_MODEL = "airnet_3exits"
# At CIFAR's size and width 16, all variants cost the same: 5/4 * (1 + 0.54) / 2 = 0.96 for small images; for hard ones
# 5/4 * 0.7 = 0.88, and 3/4 * 0.175 = 0.13 for the proxy.
_MORE_EPOCHS = 5 / 4
_HARD_SHARE = 0.7
_PROXY_EPOCHS = 3 / 5


@dataclass(frozen=True)
class Study:
    """Options: what to train, and where results go.

    Attributes:
        data: a data set of `eeutils.data.list_data()`.
        width: channels of the first layer.
        epochs: passes over the training split, each variant.
        seeds: of the weights and the batches.
        precision: of the training.
        device: where to train; by default a GPU if there is one.
        runs: folder of the trainings' checkpoints; finished ones are used as they are.
        results: folder for ablation.csv and ablation.md.
    """

    data: str = "cifar10"
    width: int = 16
    epochs: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: str = "auto"
    device: str | None = None
    runs: Path = Path("runs/ablation")
    results: Path = RESULTS

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds are empty; name one at least")


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Train all variants, compare them, write and print the table."""
    study = tyro.cli(Study, prog="python -m tools.benchmarks.ablation", description=__doc__, args=args)
    data = load_data(study.data)
    trained = {
        seed: {name: predictions_of(study, variant, name, seed, data) for name, variant in VARIANTS.items()}
        for seed in study.seeds
    }
    table = pd.concat({seed: compare(each) for seed, each in trained.items()}, names=["seed"])
    write_text(study.results / "ablation.csv", table.to_csv())
    publish(as_markdown(table), study.results / "ablation.md")


def predictions_of(study: Study, variant: Variant, name: str, seed: int, data: ImageData) -> Predictions:
    """Predictions on the validation split of a variant trained now or earlier."""
    config = recipe("muon", epochs=study.epochs, seed=seed, precision=study.precision)
    config = replace(config, **variant.config, loss=replace(config.loss, **variant.loss))
    device = choose_device(study.device)
    folder = study.runs / f"{name.replace(' ', '_')}-s{seed}"
    train = partial(fit, device=device)
    torch.manual_seed(seed)
    net = create_model(_MODEL, pool=variant.pool, width=study.width, **_fitting(data))
    if variant.prepare is not None:
        variant.prepare(net)
    if config.small_images or variant.hard_images:
        config = replace(config, epochs=max(1, round(_MORE_EPOCHS * config.epochs)))
    with mock.patch.object(optimizer, "_NEWTON_SCHULZ_STEPS", variant.newton_schulz_steps):
        if variant.hard_images:
            proxy = create_model(_MODEL, pool=variant.pool, width=max(1, study.width // 4), **_fitting(data))
            short = replace(config, epochs=max(1, round(_PROXY_EPOCHS * config.epochs)))
            train(proxy, data, short, checkpoint=folder / "proxy.pt")
            data = replace(data, train=_hard_images(proxy, data.train, device))
        if variant.backbone_first:
            config = replace(config, epochs=max(1, config.epochs // 2))
            plain = drop_exits(net, net.exit_after[:-1])  # shares its weights
            train(plain, data, config, checkpoint=folder / "backbone.pt")
        train(net, data, config, checkpoint=folder / "checkpoint.pt")
    return predict(net, data.val, device=device)


def _fitting(data: ImageData) -> dict[str, int]:
    return fitting_arguments(len(data.classes), data.image_shape)


def _hard_images(proxy: MultiExitNet, split: Split, device: torch.device) -> Split:
    """The share of the images with the highest loss at the last exit of `proxy`."""
    predictions = predict(proxy, split, device=device)
    losses = nn.functional.cross_entropy(predictions.logits[-1], predictions.labels, reduction="none")
    return split.take(losses.topk(round(_HARD_SHARE * len(split))).indices.sort().values.to(split.labels.device))


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
