"""Precision, compilation, and the peak speed of a device."""

import warnings

import torch

from eeutils.device import matrices_rounded_as_convolutions

_STEPS_THAT_PAY_FOR_COMPILING = 2_000  # torch.compile takes about a minute
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PEAK_MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}  # fills the device, takes under a second


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the generation of a GPU, (7, 5) for a T4, (8, 0) for an A100; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def autocast_dtype(precision: str, capability: tuple[int, int] | None) -> torch.dtype:
    """Return the dtype that a `TrainConfig.precision` stands for on a device of this `compute_capability`."""
    if precision != "auto":
        return _DTYPES[precision]
    if capability is None:
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def should_compile(choice: str, device: torch.device, steps: int) -> bool:
    """Decide on compiling a run of this many steps; `choice` is a `TrainConfig.compile`."""
    if choice != "auto":
        return choice == "yes"
    return device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Compile a trivial function, which needs a C compiler, and on a GPU Triton; warn if it fails."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each missing part raises its own
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, so training goes on without: {reason}", stacklevel=2)
        return False
    return True


def training_operations(macs: int) -> int:
    """Return the floating-point operations of one image's training step.

    A multiply-add is two operations, and a backward pass costs two forward passes.
    """
    return 6 * macs


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large matrix product."""
    from torch.utils.benchmark import Timer  # slow to import, and noisy without a compiler

    size = _PEAK_MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    with matrices_rounded_as_convolutions():
        return 2 * size**3 / product.blocked_autorange(min_run_time=0.5).median


def training_peak(precision: str, device: torch.device) -> float:
    """Measure `matrix_peak` in the dtype that this `TrainConfig.precision` stands for on `device`."""
    return matrix_peak(device, autocast_dtype(precision, compute_capability(device)))


def share_of_peak(macs: int, images_per_second: float, peak: float) -> float:
    """Return the share of `peak` that training a whole network uses.

    Args:
        macs: multiply-adds of one image's forward pass.
        images_per_second: of the passes over the training split.
        peak: floating-point operations per second, see `training_peak`.
    """
    return images_per_second * training_operations(macs) / peak
