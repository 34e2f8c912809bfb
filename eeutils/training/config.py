"""What a training run is made of. A config says everything that its result depends on, besides data and network."""

from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Literal, get_args, get_origin

from eeutils.data import Augmentation
from eeutils.plain import make_plain


@dataclass(frozen=True)
class LossConfig:
    """How the exits' losses become one. Of numbers and words of numpy or torch, and of lists, it makes Python's own.

    Attributes:
        weights: one per exit, shallowest first; or a scheme of `eeutils.training.losses` by name.
        distillation: share of each early exit's loss that comes from the last exit's softened answer instead of the
            label (self-distillation: Phuong & Lampert, ICCV 2019; Zhang et al., ICCV 2019).
        temperature: softens both answers for distillation.
        label_smoothing: 0, because smoothing lowers the largest softmax, so that fixed thresholds on confidence stop
            firing, and makes it a worse guide to what is right (Xia et al., ICLR 2025, arXiv 2403.14715).
    """

    weights: tuple[float, ...] | str = "deeper_counts_more"
    distillation: float = 0.0
    temperature: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("distillation", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Of numbers and words of numpy or torch, and of lists, it makes Python's own.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step; the learning rate is tuned to it.
        trained: "all" of the network; its "exits" alone, as for other classes: the backbone then stays as it is,
            BatchNorm's statistics included, and an epoch takes little more than a forward pass; or its "early_exits"
            alone: the last exit then stays, too.
        optimizer: "sgd"; "muon", which trains filters past the stem by orthogonal steps and the rest by SGD; or "adam"
            for exits on a backbone that does not move.
        learning_rate: the highest of the run.
        filter_learning_rate: the same for what Muon trains: the relative change of a layer's filters in one step.
        schedule: "linear": up over `warmup`, then down to 0 after the last step, because the last epochs at a tiny rate
            are worth points; "halving": halved every `halve_every` epochs, as UPF-DL-2020 did; "steps": a tenth after
            each of `drops`, as Shallow-Deep Networks do. The first step is never at a lowered rate.
        warmup: share of the run over which "linear" rises.
        halve_every: epochs between two halvings.
        drops: shares of the run after which "steps" drops; shares, so that a shorter run keeps the shape.
        momentum: of SGD; Adam's first beta.
        nesterov: look ahead; a little better with the linear schedule. Adam does without.
        weight_decay: on parameters of two or more dimensions: weights of convolutions and linear layers, but also class
            tokens and a LayerNorm over (C, H, W). Norms and biases, which have one, gain nothing from it. With
            "adam", too, it is L2, added to the gradient, and not taken from the weights as in AdamW.
        bias_learning_rate: learning rate of BatchNorm's biases, as a multiple of `learning_rate`. They are few and may
            run ahead of the weights (in airbench at 64 times their rate).
        average_decay: above 0, the network ends as the moving average of its weights with this decay per step, and is
            validated as that; after t steps the decay is (1 + t) / (10 + t) at most, so that little is left of the
            first weights. 0 leaves the last weights as they are.
        augmentation: what is drawn anew for every image.
        loss: how the exits' losses become one.
        seed: of the order of the batches and every draw in them; the first weights are the caller's.
        precision: "auto": bf16 on GPUs that have it, fp16 with loss scaling on those that do not, fp32 on a CPU. Others
            are taken as asked; GPUs before Ampere compute bf16, but slowly.
        compile: "auto": torch.compile on a GPU where it works, for runs long enough to pay for it; on 2 CPU cores it
            gained under 10 %.

    Raises:
        TypeError: if `loss` or `augmentation` is of another kind, such as a function of one's own.
        ValueError: if a value makes no sense.
    """

    epochs: int = 16
    batch_size: int = 128
    trained: Literal["all", "exits", "early_exits"] = "all"
    optimizer: Literal["sgd", "muon", "adam"] = "sgd"
    learning_rate: float = 0.1
    filter_learning_rate: float = 0.06
    schedule: Literal["linear", "halving", "steps"] = "linear"
    warmup: float = 0.2
    halve_every: int = 25
    drops: tuple[float, ...] = (0.35, 0.6, 0.85)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    bias_learning_rate: float = 1.0
    average_decay: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        make_plain(self)
        for name, kind in (("loss", LossConfig), ("augmentation", Augmentation)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} must be of type {kind.__name__}, got {getattr(self, name)!r}; for one of your own write "
                    "the training loop yourself, as help(eeutils.training) shows"
                )
        rates = ("learning_rate", "filter_learning_rate", "bias_learning_rate")
        for name in ("epochs", "batch_size", "halve_every", *rates):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("epochs", "batch_size", "halve_every", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)}")
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("momentum", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1, got {self.seed}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the run in [0, 1), got {self.warmup}")
        if not all(0 < drop < 1 for drop in self.drops):
            raise ValueError(f"drops are shares of the run between 0 and 1, got {self.drops}")
        for each in fields(self):
            value, choices = getattr(self, each.name), get_args(each.type)
            if get_origin(each.type) is Literal and value not in choices:
                raise ValueError(f"unknown {each.name} {value!r}; choose from {list(choices)}")


# Shallow-Deep Networks (arXiv 1810.07052): the weight decay that goes with each network, plain and with its exits.
_SDN_WEIGHT_DECAY = {"vgg16": 5e-4, "wideresnet32_4": 5e-4, "resnet56": 1e-4, "mobilenet": 1e-4}
_SDN_AUGMENTATION = Augmentation(cutout=0)
# For Tiny ImageNet's 64 x 64 pixels their code shifts twice as far and changes colours, ColorJitter(0.2, 0.2, 0.2).
_SDN_AUGMENTATION_64 = Augmentation(cutout=0, translate=8, brightness=0.2, contrast=0.2, saturation=0.2)
_CNN = TrainConfig(epochs=100, batch_size=128, schedule="steps", nesterov=False, augmentation=_SDN_AUGMENTATION)
_SDN = replace(_CNN, loss=LossConfig(weights="sdn"))
# Exits for a CNN that is trained already, whichever it is. How the losses are weighted hardly matters, since no weight
# is shared and Adam divides a loss's scale out again.
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

_RECIPES = {
    # For a GPU: batches, schedule and augmentation after airbench (github.com/KellerJordan/cifar10-airbench).
    "modern": TrainConfig(epochs=80, batch_size=500, learning_rate=0.2),
    # For slim networks and short runs on a few CPU cores. Small batches, because there a step costs what its images
    # cost; no cutout, because such networks underfit already; and weights that average 1: after 4 epochs at width 16
    # with three pyramid exits 66.9/75.2/79.0 % on validation, against 65.4/74.2/78.4 % with weights that sum to 1.
    "slim": TrainConfig(
        epochs=16,
        batch_size=128,
        learning_rate=0.1,
        augmentation=Augmentation(cutout=0),
        loss=LossConfig(weights="deeper_mean_one"),
    ),
    # For `airnet_3exits`; momentum and steps after airbench94_muon. Validation accuracy (%) after 3 epochs at width 32:
    # 75.1/83.8/87.2 with rate 0.1 for filters and 8 for biases, 77.0/84.6/87.8 with 0.2 and 8, 76.0/85.4/88.2 with 0.2
    # and 64; a longer run wants a little less. Labels smoothed by 0.2, at 0.1 and 8: 75.5/84.4/86.7.
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
    # After UPF-DL-2020: its notebooks' optimiser, schedule, weight decay and augmentation (crop and flip). Other than
    # there, norms and biases are exempt from weight decay, and shifts mirror the border. Its three-exit network was
    # trained otherwise: with RandomResizedCrop, for 75 epochs and more.
    "upf": TrainConfig(
        epochs=150,
        batch_size=256,
        learning_rate=0.1,
        schedule="halving",
        momentum=0.6,
        nesterov=False,
        augmentation=Augmentation(cutout=0),
    ),
    # After Shallow-Deep Networks: a CNN; the same with its exits from the start; exits for a trained one. Optimiser,
    # drops and weight decays are the paper's, but here norms and biases are exempt from weight decay, as all of the
    # exits for a trained one are, and shifts mirror the border.
    **_SHALLOW_DEEP,
    **{
        f"{name}_tinyimagenet": replace(config, augmentation=_SDN_AUGMENTATION_64)
        for name, config in _SHALLOW_DEEP.items()
    },
    # Handwritten digits, where a mirrored image is another sign: a minute's run for tests and first steps.
    "digits": TrainConfig(epochs=6, batch_size=64, augmentation=Augmentation(flip=False, translate=2, cutout=0)),
}


def list_recipes() -> list[str]:
    """The names that `recipe` knows."""
    return sorted(_RECIPES)


def recipe(name: str, **changes) -> TrainConfig:
    """A config by name, with some fields changed: `recipe("modern", epochs=26)`.

    Those of Shallow-Deep Networks are `cnn_<network>` and `sdn_<network>` (vgg16, resnet56, wideresnet32_4, mobilenet)
    and `ic_only` for the exits of a trained network; these are for CIFAR-10 and CIFAR-100, and with `_tinyimagenet`
    after the name for Tiny ImageNet. With `epochs=5` and a slim network each takes minutes on a CPU; the learning
    rate's drops and the exits' ramp shrink with the run.

    Raises:
        ValueError: if the name is not one of `list_recipes()`, or a value makes no sense.
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose from {list_recipes()}")
    return replace(_RECIPES[name], **changes)
