"""The loss of a network with several exits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eeutils.training.config import LossConfig

# UPF-DL-2020's weights for one, two and three exits.
_UPF_WEIGHTS = {1: (1.0,), 2: (0.3, 0.7), 3: (0.2, 0.3, 0.5)}


def _deeper_counts_more(num_exits: int) -> tuple[float, ...]:
    """0.3/0.7 for two exits, 0.2/0.3/0.5 for three (UPF-DL-2020); proportional to depth for more."""
    if num_exits in _UPF_WEIGHTS:
        return _UPF_WEIGHTS[num_exits]
    total = num_exits * (num_exits + 1) / 2
    return tuple(depth / total for depth in range(1, num_exits + 1))


def _deeper_mean_one(num_exits: int) -> tuple[float, ...]:
    """The same ratios, averaging 1: a head then learns about as fast as a plain network's."""
    return tuple(num_exits * weight for weight in _deeper_counts_more(num_exits))


def _equal(num_exits: int) -> tuple[float, ...]:
    return (1 / num_exits,) * num_exits


def _sdn_ramp(num_exits: int, progress: float) -> tuple[float, ...]:
    """Shallow-Deep Networks' (arXiv 1810.07052, section 3): early exits hardly count at first, the last always by 1.

    An early exit's weight rises to the share of the cost at which such a network places it: 0.15, 0.3, ..., 0.9 for six
    of them, and for another number evenly up to 0.9 as well.
    """
    shares = [0.9 * number / (num_exits - 1) for number in range(1, num_exits)]
    return (*(min(share, 0.01 + progress * share) for share in shares), 1.0)


_CONSTANT: dict[str, Callable[[int], tuple[float, ...]]] = {
    "deeper_counts_more": _deeper_counts_more,
    "deeper_mean_one": _deeper_mean_one,
    "equal": _equal,
}
_CHANGING: dict[str, Callable[[int, float], tuple[float, ...]]] = {"sdn": _sdn_ramp}


def list_weight_schemes() -> list[str]:
    """The names that `exit_weights` knows."""
    return sorted([*_CONSTANT, *_CHANGING])


def exit_weights(weights: Sequence[float] | str, num_exits: int, progress: float = 0.0) -> tuple[float, ...]:
    """The weight of each exit's loss, shallowest first.

    Args:
        weights: numbers, or one of `list_weight_schemes()`.
        num_exits: of the network.
        progress: share of the run's epochs, the present one included; only "sdn" changes with it.

    Raises:
        ValueError: if the name is unknown, or the numbers are negative, all zero or not one per exit.
    """
    if isinstance(weights, str):
        if weights in _CHANGING:
            return _CHANGING[weights](num_exits, progress)
        if weights not in _CONSTANT:
            raise ValueError(f"unknown weights {weights!r}; choose from {list_weight_schemes()}")
        return _CONSTANT[weights](num_exits)
    if len(weights) != num_exits:
        raise ValueError(f"{len(weights)} exit weights {tuple(weights)} for a network with {num_exits} exits")
    if not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"exit weights must not be negative or all zero, got {tuple(weights)}")
    return tuple(weights)


def exit_losses(logits: Sequence[Tensor], labels: Tensor, config: LossConfig) -> Tensor:
    """The loss of each exit by itself, (E,); `logits` are E times (N, C), `labels` (N,).

    With self-distillation an early exit learns in part from the last one's answer, which it cannot move.
    """
    logits = [answer.float() for answer in logits]  # under autocast they come in 16 bits: too few for a loss
    hard = [F.cross_entropy(answer, labels, label_smoothing=config.label_smoothing) for answer in logits]
    if not config.distillation:
        return torch.stack(hard)
    teacher = F.softmax(logits[-1].detach() / config.temperature, dim=-1)
    # Times the temperature squared, so that the gradient's size does not depend on it (Hinton et al., 1503.02531).
    soft = [
        config.temperature**2
        * F.kl_div(F.log_softmax(answer / config.temperature, dim=-1), teacher, reduction="batchmean")
        for answer in logits[:-1]
    ]
    mixed = [torch.lerp(own, taught, config.distillation) for own, taught in zip(hard, soft, strict=False)]
    return torch.stack([*mixed, hard[-1]])
