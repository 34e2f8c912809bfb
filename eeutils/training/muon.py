"""Muon: momentum whose step on a layer's filters is made orthogonal (Jordan et al., 2024)."""

from typing import Any

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values grow by 3.4 a step
_NEWTON_SCHULZ_STEPS = 3


class Muon(torch.optim.SGD):
    """SGD that takes orthogonal steps on filters (out, in, height, width), those in groups with `orthogonal=True`.

    Each layer's matrix (out, in * height * width) is rescaled to norm sqrt(out) before its step, so that the learning
    rate is the relative change of a layer in one step. This suits filters that a norm follows: it undoes any scale.
    After github.com/KellerJordan/Muon and, for the rescaling, airbench94_muon of cifar10-airbench by the same author.

    Args:
        groups: of parameters; weight decay has no effect on orthogonal ones.
        learning_rate: of groups without their own `lr`.
        momentum: of all groups.
        nesterov: look ahead.
        in_bf16: make orthogonal in bf16, which is precise enough and on recent CPUs eight times as fast.
    """

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float, momentum: float, nesterov: bool, in_bf16: bool
    ) -> None:
        super().__init__(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
        self.dtype = torch.bfloat16 if in_bf16 else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; gradients of filters are used up. Nothing waits for the device."""
        for group in self.param_groups:
            for filters in group["params"] if group["orthogonal"] else ():
                if filters.grad is not None:
                    self._step_filters(filters, **group)
        super().step(closure)  # passes over what has no gradient

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
    """`matrix` with its larger singular values brought near 1, by a few Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
