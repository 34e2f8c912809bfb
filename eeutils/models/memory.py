"""How a network's tensors lie in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """`net` in channels-last memory, in which convolutions are fastest; afterwards as it was.

    As it was, because some code that its owner runs cannot do otherwise: `safetensors.torch.save_file`, for one.
    """
    contiguous = [tensor.is_contiguous() for tensor in chain(net.parameters(), net.buffers())]
    net.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for tensor, was_contiguous in zip(chain(net.parameters(), net.buffers()), contiguous, strict=True):
            if was_contiguous:
                tensor.data = tensor.data.contiguous()
