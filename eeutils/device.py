"""Where to compute, and what that is called."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

_KINDS = ["cpu", "cuda"]


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """`device` if it is there; None stands for `default_device()`.

    Raises:
        ValueError: if `device` is neither a CPU nor a GPU, or there is no such GPU.
    """
    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; choose from {_KINDS}") from error
    if chosen.type not in _KINDS:
        raise ValueError(f"unknown device {str(chosen)!r}; choose from {_KINDS}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(chosen)!r} asked for, but torch finds no GPU; choose 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(chosen)!r} asked for, but the last one is 'cuda:{torch.cuda.device_count() - 1}'"
        )
    return chosen


def device_name(device: torch.device) -> str:
    """What a speed was measured on: the GPU's name, or the number of the CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def cuda_indices(device: torch.device) -> list[int]:
    """The GPU whose random numbers a run on `device` draws, if it is one, as `torch.random.fork_rng` wants it."""
    return [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []


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
