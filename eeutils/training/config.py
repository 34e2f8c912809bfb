"""Configs of a training run: with data and first weights, they determine its result."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from eeutils.data import Augmentation
from eeutils.fields import Count, NotNegative, Positive, Rule, Share, check_fields

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
    loss: LossConfig = field(default_factory=LossConfig)
    seed: _Seed = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
