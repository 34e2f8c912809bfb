"""The optimiser of a run: which parameters decay, how fast each group learns, and how its state is resumed."""

from typing import Any

import torch
from torch import nn

from eeutils.training.config import TrainConfig


def create_optimizer(part: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """What `config` asks for, on the parameters of `part`; a group's `lr_factor` is to be multiplied by its rate."""
    groups = _parameter_groups(part, config)
    # The fused kernel takes the loss scaler's verdict on the device; the others would ask the host at every step.
    fused = device.type == "cuda"
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=fused)
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=fused
    )
    if config.momentum:
        _begin_at_rest(optimizer)
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take from `saved`, the state of an optimizer of the same config, what it has learnt.

    The settings stay the optimizer's own: they follow from the config, or, which kernel steps, from the device.
    """
    optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})


def _begin_at_rest(optimizer: torch.optim.SGD) -> None:
    """Let momentum begin at zero, which is what a first step makes of it anyway.

    The fused kernel skips a step whose scaled gradients overflow, as the first ones in fp16 do, but torch keeps the
    buffers that this step was to fill: memory of whatever was there before.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _parameter_groups(part: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Weights, which decay; norms and biases, which do not; BatchNorm's biases, if they have a rate of their own."""
    rest = dict(part.named_parameters())
    faster = []
    if config.bias_learning_rate != 1:
        norms = [name for name, module in part.named_modules() if isinstance(module, nn.BatchNorm2d)]
        faster = [rest.pop(f"{name}.bias") for name in norms if f"{name}.bias" in rest]
    groups = [
        {"params": [each for each in rest.values() if each.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in rest.values() if each.ndim <= 1], "weight_decay": 0.0},
        {"params": faster, "weight_decay": 0.0, "lr_factor": config.bias_learning_rate},
    ]
    return [{"lr_factor": 1.0, **group} for group in groups[: 3 if faster else 2]]
