"""How a network's tensors lie in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


def to_channels_last(net: nn.Module) -> None:
    """Lay the tensors of `net` out in channels-last memory, in place, those that have four dimensions.

    `net.to(memory_format=torch.channels_last)` would try it with five as well, and raise.
    """
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """`net` in channels-last memory, in which convolutions are fastest; afterwards as it was.

    It is put back because its owner may depend on it: `safetensors.torch.save_file` takes contiguous tensors only.
    """
    contiguous = [tensor.is_contiguous() for tensor in chain(net.parameters(), net.buffers())]
    to_channels_last(net)
    try:
        yield
    finally:
        for tensor, was_contiguous in zip(chain(net.parameters(), net.buffers()), contiguous, strict=True):
            if was_contiguous:
                tensor.data = tensor.data.contiguous()
