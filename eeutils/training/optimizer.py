"""Optimizer of a run: trained part, parameter groups, learning rate, weight average."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet
from eeutils.models.memory import independent_copy
from eeutils.training.config import TrainConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values grow by 3.4 a step
_NEWTON_SCHULZ_STEPS = 3


def trained_part(net: MultiExitNet, trained: str) -> nn.Module:
    """Return the part that `TrainConfig.trained` names: `net`, its exits, or all exits but the last."""
    if trained == "all":
        return net
    exits = list(net.exits.values())
    return nn.ModuleList(exits if trained == "exits" else exits[:-1])


def frozen_tensors(net: MultiExitNet, trained: str) -> dict[str, Tensor]:
    """Return the parameters and buffers of `net` that a run leaves unchanged, by name."""
    moving = {id(tensor) for tensor in trained_part(net, trained).state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) not in moving}


def set_modes(net: MultiExitNet, trained: str) -> None:
    """Set the trained part to training mode and the rest to evaluation mode, which keeps BatchNorm's statistics."""
    net.eval()
    trained_part(net, trained).train()


@contextmanager
def gradients_for(net: MultiExitNet, trained: str) -> Iterator[None]:
    """Compute gradients for the trained part only."""
    frozen = [tensor for tensor in frozen_tensors(net, trained).values() if tensor.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def create_optimizer(part: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Create the optimizer of `part`; each parameter group multiplies the learning rate by its `lr_factor`."""
    groups = _parameter_groups(part, config)
    fused = device.type == "cuda"  # other kernels wait for the loss scaler's verdict at every step
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=fused)
    settings = {"lr": config.learning_rate, "momentum": config.momentum, "nesterov": config.nesterov}
    if config.optimizer == "muon":
        optimizer = Muon(groups, in_bf16=config.precision == "bf16", **settings)
    else:
        optimizer = torch.optim.SGD(groups, fused=fused, **settings)
    if config.momentum:
        # Start at zero, which does not change the first step. If its scaled gradients overflow, as in fp16, the fused
        # kernel skips it and would leave buffers uninitialised.
        for parameter in part.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of an optimizer of the same config, but not its settings, such as the kernel for its device."""
    optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_groups(part: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group weights, which decay; norms and biases, which do not; BatchNorm's biases, if they have their own rate.

    With Muon, the first group is the filters of exits and of all units but the stem.
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
    """Return the learning rate of the run's `step`-th update, counted from 1; see `TrainConfig.schedule`."""
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** ((step - 1) // (config.halve_every * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if config.schedule == "steps":
        passed = sum(step > max(round(drop * total), 1) for drop in config.drops)
        return config.learning_rate * 0.1**passed
    rising = max(round(config.warmup * total), 1)
    # 0 after the last step, not at it: the last step would be computed for nothing.
    return config.learning_rate * min(step / rising, (total + 1 - step) / (total + 1 - rising))


class WeightAverage:
    """Exponential moving average of a network's weights and BatchNorm statistics (Polyak averaging).

    An update keeps the share `decay` of the average, and update t at most (1 + t) / (10 + t), so that short runs forget
    their first weights as well. Unlike torch's AveragedModel, it does not read its step count from the device.
    """

    def __init__(self, net: MultiExitNet, decay: float) -> None:
        self.net = independent_copy(net).eval()
        self.decay = decay
        self._average, self._latest = _averaged_tensors(self.net), _averaged_tensors(net)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the network's weights after step `step` of the run, counted from 0. Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._latest, 1 - decay)


def _averaged_tensors(net: MultiExitNet) -> list[Tensor]:
    """Return parameters and finite floating buffers: lerp makes NaN of the infinities in an attention mask."""
    finite = [buffer for buffer in net.buffers() if buffer.isfinite().all()]
    return [tensor for tensor in (*net.parameters(), *finite) if tensor.is_floating_point()]


class Muon(torch.optim.SGD):
    """SGD that takes orthogonal steps on filters (out, in, height, width), those in groups with `orthogonal=True`.

    Each layer's matrix (out, in * height * width) is rescaled to norm sqrt(out) before its step, so that the learning
    rate is the relative change of a layer in one step. This suits filters that a norm follows: it undoes any scale.
    After github.com/KellerJordan/Muon and, for the rescaling, airbench94_muon of cifar10-airbench by the same author.
    Weight decay has no effect on filters. bf16 is precise enough for them, and on recent CPUs eight times as fast.
    """

    def __init__(self, groups: list[dict[str, Any]], *, in_bf16: bool, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.dtype = torch.bfloat16 if in_bf16 else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters and drop the gradients of filters. Nothing waits for the device."""
        for group in self.param_groups:
            for filters in group["params"] if group["orthogonal"] else ():
                if filters.grad is not None:
                    self._step_filters(filters, **group)
        super().step(closure)  # skips what has no gradient

    def _step_filters(self, filters: Tensor, lr: float, momentum: float, nesterov: bool, **_: Any) -> None:
        state = self.state[filters]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(filters)
        buffer = state["momentum_buffer"].mul_(momentum).add_(filters.grad)
        step = filters.grad.add(buffer, alpha=momentum) if nesterov else buffer
        filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.sub_(orthogonal(step.flatten(1).to(self.dtype)).reshape(filters.shape), alpha=lr)
        filters.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the larger singular values of `matrix` near 1 by a few Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
