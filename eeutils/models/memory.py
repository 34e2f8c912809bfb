"""Device, memory format and health of a network's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from eeutils.errors import require

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_STATISTICS = ("running_mean", "running_var")


def device_and_dtype(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of the first floating tensor of `net`; without one, the CPU and float32."""
    tensors = list(chain(net.parameters(), net.buffers()))
    require(not any(map(is_lazy, tensors)), "lazy layers must have weights; call net(images) once first")
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


def independent_copy(net: ModuleT) -> ModuleT:
    """Return a deep copy of `net`; plain `deepcopy` refuses weights that hooks compute, as in `prune`."""
    computed = (value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return deepcopy(net, {id(tensor): tensor.detach().clone() for tensor in computed if not tensor.is_leaf})


def make_weights_permanent(net: nn.Module) -> None:
    """Replace weights that `torch.nn.utils` computes in hooks (`prune`, `weight_norm`) by their values."""
    for module in net.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hasattr(hook, "remove"):
                hook.remove(module)
                del module._forward_pre_hooks[key]


def to_channels_last(net: nn.Module) -> list[Tensor]:
    """Bring the 4-D tensors of `net` into channels-last memory, and return those that were contiguous.

    `net.to(memory_format=torch.channels_last)` raises at 5-D tensors.
    """
    tensors = [tensor for tensor in chain(net.parameters(), net.buffers()) if tensor.ndim == 4]
    contiguous = [tensor for tensor in tensors if tensor.is_contiguous()]
    for tensor in tensors:
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return contiguous


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """Keep `net` in channels-last memory, where convolutions are fastest, and restore its memory format afterwards.

    Callers may need it: `safetensors.torch.save_file` takes contiguous tensors only.
    """
    contiguous = to_channels_last(net)
    try:
        yield
    finally:
        for tensor in contiguous:
            tensor.data = tensor.data.contiguous()


def named_weights(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and running statistics under all their names in `state_dict()`: the tensors that must be finite.

    Other buffers may hold infinities, as attention masks do.
    """
    yield from net.named_parameters(remove_duplicate=False)
    yield from (named for named in net.named_buffers(remove_duplicate=False) if named[0].endswith(_STATISTICS))


def check_weights(net: nn.Module) -> None:
    """Raise ValueError if a weight of `net` is NaN or infinite; the parts of quantized weights are not checked."""
    for name, tensor in named_weights(net):
        if not is_traceable_wrapper_subclass(tensor):
            require(bool(tensor.isfinite().all()), f"weights must be finite, got NaN or infinity in {name!r}")
