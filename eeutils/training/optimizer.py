"""The optimizer of a run: parameter groups, learning rates, averaged weights, resumed state."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet
from eeutils.training.config import TrainConfig
from eeutils.training.muon import Muon


def create_optimizer(part: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """What `config` asks for, on the parameters of `part`; a group's `lr_factor` is to be multiplied by its rate."""
    groups = _parameter_groups(part, config)
    # The fused kernel takes the loss scaler's verdict on the device; the others would ask the host at every step.
    fused = device.type == "cuda"
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=fused)
    if config.optimizer == "muon":
        in_bf16 = config.precision == "bf16"
        optimizer = Muon(groups, config.learning_rate, config.momentum, config.nesterov, in_bf16=in_bf16)
    else:
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
    """Weights, which decay; norms and biases, which do not; BatchNorm's biases, if they have a rate of their own.

    For Muon, the filters of all units but the stem, and of the exits, come first.
    """
    rest = dict(part.named_parameters())
    faster, filters = [], []
    if config.optimizer == "muon":
        names = [name for name, each in rest.items() if each.ndim == 4 and not name.startswith("units.0.")]
        filters = [rest.pop(name) for name in names]
    if config.bias_learning_rate != 1:
        norms = [name for name, module in part.named_modules() if isinstance(module, nn.BatchNorm2d)]
        faster = [rest.pop(f"{name}.bias") for name in norms if f"{name}.bias" in rest]
    groups = [
        {"params": [each for each in rest.values() if each.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in rest.values() if each.ndim <= 1], "weight_decay": 0.0},
        {"params": faster, "weight_decay": 0.0, "lr_factor": config.bias_learning_rate},
    ]
    if config.optimizer == "muon":
        factor = config.filter_learning_rate / config.learning_rate
        groups.insert(0, {"params": filters, "weight_decay": 0.0, "lr_factor": factor, "orthogonal": True})
    return [{"lr_factor": 1.0, "orthogonal": False, **group} for group in groups if group["params"]]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """For the `step`-th update of the run, counted from 1; see `TrainConfig.schedule`. Always above 0."""
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** ((step - 1) // (config.halve_every * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if config.schedule == "steps":
        passed = sum(step > max(round(drop * total), 1) for drop in config.drops)
        return config.learning_rate * 0.1**passed
    rising = max(round(config.warmup * total), 1)
    # To 0 after the last step and not with it, or that one would be computed for nothing.
    return config.learning_rate * min(step / rising, (total + 1 - step) / (total + 1 - rising))


class WeightAverage:
    """The exponential moving average of a network's weights and of BatchNorm's statistics (Polyak averaging).

    torch.optim.swa_utils.AveragedModel does the same, but asks the device at every step how often it was called.

    Args:
        net: the network as it is before training.
        decay: what an update leaves of the average; 0.999 looks back over about a thousand steps. The first updates
            leave less, (1 + t) / (10 + t) after t of them: a short run, too, soon forgets the weights it began with.
    """

    def __init__(self, net: MultiExitNet, decay: float) -> None:
        self.net = deepcopy(net).eval()
        self.decay = decay
        self._own, self._latest = _tensors(self.net), _tensors(net)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's weights after update `step` of the run, counted from 0. Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, self._latest, 1 - decay)


def _tensors(net: MultiExitNet) -> list[Tensor]:
    """Parameters and buffers as they live in `net`, save those that cannot be averaged.

    BatchNorm's count of batches is no number to average, and of infinities, such as an attention mask has, lerp makes
    NaN. A weight that is not finite is not left out: nobody would see that it went wrong.
    """
    finite = [buffer for buffer in net.buffers() if buffer.isfinite().all()]
    return [tensor for tensor in (*net.parameters(), *finite) if tensor.is_floating_point()]
