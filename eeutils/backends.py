"""Torch's switches for computing on a GPU. They are global: each is set for a while only, and put back.

Not by `torch.backends.cudnn.flags`: it also sets the switches that it is not told of, and turns cuDNN off by default.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


def tuned_convolutions() -> AbstractContextManager[None]:
    """CuDNN tries its algorithms on the first batch of each shape and keeps the fastest.

    That pays where shapes stay the same, as in training. Whoever has asked for deterministic algorithms gets
    none that were chosen by the clock.
    """
    cudnn = torch.backends.cudnn
    by_the_clock = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    return _switched(cudnn, "benchmark", by_the_clock)


def unrounded_convolutions() -> AbstractContextManager[None]:
    """Float32 convolutions of full precision; a GPU rounds their factors to 10 bits (TF32) unless told otherwise."""
    return _switched(torch.backends.cudnn, "allow_tf32", False)


def matrices_rounded_as_convolutions() -> AbstractContextManager[None]:
    """Float32 matrix products rounded as convolutions are.

    Unless told otherwise, torch on a GPU computes convolutions in TF32 and matrix products in full precision.
    """
    return _switched(torch.backends.cuda.matmul, "allow_tf32", torch.backends.cudnn.allow_tf32)


@contextmanager
def _switched(backend: Any, switch: str, value: bool) -> Iterator[None]:
    before = getattr(backend, switch)
    setattr(backend, switch, value)
    try:
        yield
    finally:
        setattr(backend, switch, before)
