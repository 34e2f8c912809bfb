"""Configs of a training run, which with data and first weights determine its result, and recipes by name."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from eeutils.data import Augmentation
from eeutils.fields import Count, NotNegative, Positive, Rule, Share, check_choice, check_fields

_Seed = Annotated[int, Rule("in 0..2**32-1", lambda value: 0 <= value < 2**32)]
_Drops = Annotated[tuple[float, ...], Rule("in (0, 1)", lambda values: all(0 < value < 1 for value in values))]


@dataclass(frozen=True)
class LossConfig:
    """Loss of each exit, and how the exits' losses add up.

    Attributes:
        weights: one per exit, shallowest first; or a scheme of `eeutils.training.losses` by name.
        distillation: share of each early exit's loss that compares it with the last exit's softened output instead of
            the label (self-distillation: Phuong & Lampert, ICCV 2019; Zhang et al., ICCV 2019).
        temperature: softens both outputs for distillation.
        label_smoothing: lowers confidence, so that fixed thresholds stop firing, and makes it a worse guide to errors
            (Xia et al., ICLR 2025, arXiv 2403.14715).
    """

    weights: tuple[float, ...] | str = "deeper_counts_more"
    distillation: Share = 0.0
    temperature: Positive = 3.0
    label_smoothing: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step; the learning rate is tuned to it.
        trained: "all" of the network; only the "exits", on a frozen backbone; or only the "early_exits", with the last
            exit frozen, too. Frozen BatchNorms keep their statistics.
        optimizer: "sgd"; "muon", which trains filters past the stem by orthogonal steps and the rest by SGD; or "adam"
            for exits on a frozen backbone.
        learning_rate: the highest of the run.
        filter_learning_rate: the same for what Muon trains: the relative change of a layer's filters in one step.
        schedule: "linear" rises over `warmup`, then falls to 0 after the last step, because the last epochs at a tiny
            rate are worth points; "halving" halves every `halve_every` epochs (UPF-DL-2020); "steps" divides by ten
            after each of `drops` (Shallow-Deep Networks).
        warmup: share of the run over which "linear" rises.
        halve_every: epochs between two halvings.
        drops: shares of the run after which "steps" drops, so that a shorter run keeps the shape.
        momentum: of SGD; Adam's first beta. Zero needs `nesterov=False`.
        nesterov: look ahead; slightly better with the linear schedule. Adam ignores it.
        weight_decay: of parameters with two or more dimensions; norms and biases gain nothing from it. With "adam" it
            is L2, added to the gradient, unlike AdamW.
        bias_learning_rate: learning rate of BatchNorm's biases, as a multiple of `learning_rate`. They are few and may
            run ahead of the weights (in airbench at 64 times their rate).
        average_decay: above 0, the network is validated and returned as the moving average of its weights, with this
            decay per step, limited to (1 + t) / (10 + t) after t steps to forget the first weights.
        augmentation: drawn anew for every image.
        small_images: share of the run, its beginning, that sees images of 3/4 of their side for 9/16 of the compute.
        loss: how the exits' losses add up.
        seed: of the order of batches and of all draws; the caller draws the first weights.
        precision: "auto" is bf16 on GPUs that have it, fp16 with loss scaling on older ones, fp32 on a CPU.
        compile: "auto" compiles runs on a GPU that are long enough to pay for it; on 2 CPU cores it gained under 10 %.
    """

    epochs: Count = 16
    batch_size: Count = 128
    trained: Literal["all", "exits", "early_exits"] = "all"
    optimizer: Literal["sgd", "muon", "adam"] = "sgd"
    learning_rate: Positive = 0.1
    filter_learning_rate: Positive = 0.06
    schedule: Literal["linear", "halving", "steps"] = "linear"
    warmup: Share = 0.2
    halve_every: Count = 25
    drops: _Drops = (0.35, 0.6, 0.85)
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    bias_learning_rate: Positive = 1.0
    average_decay: Share = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    small_images: Share = 0.0
    loss: LossConfig = field(default_factory=LossConfig)
    seed: _Seed = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


# Shallow-Deep Networks (arXiv 1810.07052): the weight decay of each network, with and without exits.
_SDN_WEIGHT_DECAY = {"vgg16": 5e-4, "wideresnet32_4": 5e-4, "resnet56": 1e-4, "mobilenet": 1e-4}
_SDN_AUGMENTATION = Augmentation(cutout=0)
# For Tiny ImageNet's 64 x 64 pixels their code shifts twice as far and changes colours, ColorJitter(0.2, 0.2, 0.2).
_SDN_AUGMENTATION_64 = Augmentation(cutout=0, translate=8, brightness=0.2, contrast=0.2, saturation=0.2)
_CNN = TrainConfig(epochs=100, batch_size=128, schedule="steps", nesterov=False, augmentation=_SDN_AUGMENTATION)
_SDN = replace(_CNN, loss=LossConfig(weights="sdn"))
# Exits for a trained CNN. Loss weights hardly matter: exits share no parameters, and Adam divides by the scale.
_IC_ONLY = TrainConfig(
    epochs=25,
    batch_size=128,
    trained="early_exits",
    optimizer="adam",
    learning_rate=1e-3,
    schedule="steps",
    drops=(0.6,),
    weight_decay=0.0,
    augmentation=_SDN_AUGMENTATION,
    loss=LossConfig(weights="equal"),
)
_SHALLOW_DEEP = {
    **{f"cnn_{net}": replace(_CNN, weight_decay=decay) for net, decay in _SDN_WEIGHT_DECAY.items()},
    **{f"sdn_{net}": replace(_SDN, weight_decay=decay) for net, decay in _SDN_WEIGHT_DECAY.items()},
    "ic_only": _IC_ONLY,
}
_MODERN = TrainConfig(epochs=80, batch_size=500, learning_rate=0.2)

_RECIPES = {
    # For a GPU: batch size, schedule and augmentation after airbench (github.com/KellerJordan/cifar10-airbench).
    "modern": _MODERN,
    # For Colab's T4: by estimate ten minutes for ResNet18 at full width, 2,000 images a second.
    "t4": replace(_MODERN, epochs=26),
    # For slim networks and short runs on a few CPU cores. Small batches, because on a CPU small steps cost no extra; no
    # cutout, because slim networks underfit already; loss weights of mean 1, because after 4 epochs at width 16 three
    # pyramid exits then reach 66.9/75.2/79.0 % on validation, against 65.4/74.2/78.4 % with a sum of 1.
    "slim": TrainConfig(
        epochs=16,
        batch_size=128,
        learning_rate=0.1,
        augmentation=Augmentation(cutout=0),
        loss=LossConfig(weights="deeper_mean_one"),
    ),
    # For `airnet_3exits`; momentum and steps after airbench94_muon. Validation accuracy (%), 3 epochs at width 32, by
    # rates of filters and biases: 75.1/83.8/87.2 with 0.1 and 8, 77.0/84.6/87.8 with 0.2 and 8, 76.0/85.4/88.2 with 0.2
    # and 64. The recipe lies between. With label smoothing of 0.2, at 0.1 and 8: 75.5/84.4/86.7.
    "muon": TrainConfig(
        epochs=12,
        batch_size=500,
        optimizer="muon",
        filter_learning_rate=0.15,
        warmup=0.0,
        momentum=0.6,
        bias_learning_rate=32.0,
        augmentation=Augmentation(translate=2, cutout=0),
        loss=LossConfig(weights="deeper_mean_one"),
    ),
    # Optimizer, schedule, weight decay and augmentation (crop and flip) of UPF-DL-2020's notebooks; here norms and
    # biases do not decay, and shifts mirror the border. Its three exits had RandomResizedCrop and 75 epochs or more.
    "upf": TrainConfig(
        epochs=150,
        batch_size=256,
        learning_rate=0.1,
        schedule="halving",
        momentum=0.6,
        nesterov=False,
        augmentation=Augmentation(cutout=0),
    ),
    # Shallow-Deep Networks: a CNN, a CNN trained with its exits, exits for a trained CNN. Optimizer, drops and weight
    # decay are the paper's; here norms, biases and exits for a trained CNN do not decay, and shifts mirror the border.
    **_SHALLOW_DEEP,
    **{
        f"{name}_tinyimagenet": replace(config, augmentation=_SDN_AUGMENTATION_64)
        for name, config in _SHALLOW_DEEP.items()
    },
    # Handwritten digits, which must not be mirrored: a minute for tests and first steps.
    "digits": TrainConfig(epochs=6, batch_size=64, augmentation=Augmentation(flip=False, translate=2, cutout=0)),
}


def list_recipes() -> list[str]:
    """Return the names of all recipes."""
    return sorted(_RECIPES)


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Return a recipe by name, with some fields changed: `recipe("modern", epochs=26)`.

    Those of Shallow-Deep Networks are `cnn_<network>` and `sdn_<network>` (vgg16, resnet56, wideresnet32_4, mobilenet)
    for CIFAR, and `ic_only` for the exits of a trained network; append `_tinyimagenet` for Tiny ImageNet. With fewer
    epochs the schedule keeps its shape.
    """
    check_choice("recipe", name, list_recipes())
    return replace(_RECIPES[name], **changes)
