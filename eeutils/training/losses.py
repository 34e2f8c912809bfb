"""Losses of a network with several exits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eeutils.errors import require
from eeutils.fields import check_choice
from eeutils.training.config import LossConfig

Loss = Callable[[list[Tensor], Tensor], Tensor]  # logits of E exits, labels (N,) -> (E,) or ()

_UPF_WEIGHTS = {1: (1.0,), 2: (0.3, 0.7), 3: (0.2, 0.3, 0.5)}  # UPF-DL-2020


def _deeper_counts_more(num_exits: int, _: float) -> tuple[float, ...]:
    """0.3/0.7 for two exits, 0.2/0.3/0.5 for three (UPF-DL-2020); proportional to depth for more."""
    total = num_exits * (num_exits + 1) / 2
    return _UPF_WEIGHTS.get(num_exits) or tuple(depth / total for depth in range(1, num_exits + 1))


def _deeper_mean_one(num_exits: int, _: float) -> tuple[float, ...]:
    """The same ratios with mean 1, so that a head learns about as fast as that of a network without early exits."""
    return tuple(num_exits * weight for weight in _deeper_counts_more(num_exits, _))


def _sdn(num_exits: int, progress: float) -> tuple[float, ...]:
    """Ramp of Shallow-Deep Networks (arXiv 1810.07052, section 3): early exits start near 0, the last one has 1.

    Each early exit's weight rises to its share of the network's cost: 0.15, 0.3, ..., 0.9 for six early exits, and
    evenly up to 0.9 for another number.
    """
    shares = [0.9 * number / (num_exits - 1) for number in range(1, num_exits)]
    return (*(min(share, 0.01 + progress * share) for share in shares), 1.0)


_SCHEMES: dict[str, Callable[[int, float], tuple[float, ...]]] = {
    "deeper_counts_more": _deeper_counts_more,
    "deeper_mean_one": _deeper_mean_one,
    "equal": lambda num_exits, progress: (1 / num_exits,) * num_exits,
    "sdn": _sdn,
}


def exit_weights(weights: Sequence[float] | str, num_exits: int, progress: float = 0.0) -> tuple[float, ...]:
    """Return the weight of each exit's loss, shallowest first, from numbers or by the name of a scheme.

    `progress` is the share of the run's epochs, the current one included; only "sdn" changes with it.
    """
    if isinstance(weights, str):
        check_choice("weights", weights, sorted(_SCHEMES))
        return _SCHEMES[weights](num_exits, progress)
    usable = len(weights) == num_exits and all(weight >= 0 for weight in weights) and sum(weights) > 0
    require(usable, f"weights must be {num_exits} numbers, 0 or more and not all 0, got {tuple(weights)}")
    return tuple(weights)


def exit_losses(logits: Sequence[Tensor], labels: Tensor, config: LossConfig) -> Tensor:
    """Return the loss of each exit (E,); `logits` are E times (N, C), `labels` (N,).

    With self-distillation, early exits learn in part from the last one, which gets no gradient from them.
    """
    hard = [F.cross_entropy(each, labels, label_smoothing=config.label_smoothing) for each in logits]
    if not config.distillation:
        return torch.stack(hard)
    teacher = F.softmax(logits[-1].detach() / config.temperature, dim=-1)
    students = [F.log_softmax(each / config.temperature, dim=-1) for each in logits[:-1]]
    # Times the temperature squared, so that gradients do not shrink with it (Hinton et al., 1503.02531).
    soft = [config.temperature**2 * F.kl_div(student, teacher, reduction="batchmean") for student in students]
    mixed = [torch.lerp(own, taught, config.distillation) for own, taught in zip(hard, soft, strict=False)]
    return torch.stack([*mixed, hard[-1]])
