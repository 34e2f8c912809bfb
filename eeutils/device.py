"""Devices: which one to compute on, its name and speed, and torch's global switches."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from eeutils.fields import check_choice

_UNTESTED = "mps is untested here; if torch lacks an operator there, set PYTORCH_ENABLE_MPS_FALLBACK=1"
_PEAK_MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}  # fills the device, takes under a second


def default_device() -> torch.device:
    """Return a CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """Return `device` if it is available; None stands for `default_device()`, which is never Apple's untested "mps"."""
    if device is None:
        return default_device()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *["cuda"] * bool(gpus), *(f"cuda:{index}" for index in range(gpus))]
    available += ["mps", "mps:0"] * torch.backends.mps.is_available()
    check_choice("device", str(device), available)
    if str(device).startswith("mps"):
        warnings.warn(_UNTESTED, stacklevel=2)
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the number of the CPU's threads, to note beside a measured time."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} thread(s)"


def cuda_indices(device: torch.device) -> list[int]:
    """Return the index of the GPU `device`, in a list that is empty for others, as `torch.random.fork_rng` takes it."""
    return [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large matrix product."""
    from torch.utils.benchmark import Timer  # slow to import, and noisy without a compiler

    size = _PEAK_MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    # By default torch rounds float32 factors to 10 bits (TF32) in convolutions only.
    with _switched(torch.backends.cuda.matmul, "allow_tf32", torch.backends.cudnn.allow_tf32):
        return 2 * size**3 / product.blocked_autorange(min_run_time=0.5).median


def share_of_peak(macs: float, images_per_second: float, peak: float) -> float:
    """Return the share of `peak` (`matrix_peak`) that training the whole network reaches; `macs` are of one image."""
    return images_per_second * 6 * macs / peak  # two operations each; a backward pass costs two forward passes


def tuned_convolutions() -> AbstractContextManager[None]:
    """Let cuDNN time its algorithms on the first batch of each shape and keep the fastest, unless deterministic."""
    cudnn = torch.backends.cudnn
    timed = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    return _switched(cudnn, "benchmark", timed)


def unrounded_convolutions() -> AbstractContextManager[None]:
    """Compute float32 convolutions in full precision; by default a GPU rounds their factors to 10 bits (TF32)."""
    return _switched(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def _switched(backend: Any, switch: str, value: bool) -> Iterator[None]:
    before = getattr(backend, switch)
    setattr(backend, switch, value)
    try:
        yield
    finally:
        setattr(backend, switch, before)
