"""Where to compute, and how: decisions as plain functions, which need no GPU to be tested."""

import torch

# torch.compile takes a minute or so; a run has to have this many steps to win it back.
_STEPS_THAT_PAY_FOR_COMPILING = 2_000
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """`device` if it is there; None stands for `default_device()`.

    Raises:
        ValueError: if torch knows no such device, or has no GPU to offer.
    """
    if device is None:
        return default_device()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; choose from ['cpu', 'cuda']") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(chosen)!r} asked for, but torch finds no GPU; choose 'cpu'")
    return chosen


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """The generation of a GPU, (7, 5) for a T4, (8, 0) for an A100; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def autocast_dtype(precision: str, capability: tuple[int, int] | None) -> torch.dtype:
    """What to compute in: a `TrainConfig.precision` on a device of this `compute_capability`.

    "auto" is bf16 where the GPU has it natively (8.0, Ampere, and later), fp16 on those before (a T4), fp32 on a CPU.
    """
    if precision != "auto":
        return _DTYPES[precision]
    if capability is None:
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def should_compile(choice: str, capability: tuple[int, int] | None, steps: int) -> bool:
    """Whether a run of so many steps is compiled; "auto": on a GPU, if the run is long enough to win the time back."""
    if choice != "auto":
        return choice == "yes"
    return capability is not None and steps >= _STEPS_THAT_PAY_FOR_COMPILING
