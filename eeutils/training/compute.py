"""What to compute in, and whether compiled: decisions as plain functions, which need no GPU to be tested."""

import warnings

import torch

# torch.compile takes a minute or so; a run has to have this many steps to win it back.
_STEPS_THAT_PAY_FOR_COMPILING = 2_000
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def should_compile(choice: str, device: torch.device, steps: int) -> bool:
    """Whether a run of this many steps is compiled.

    "auto": on a GPU, if the run is long enough to win the time back, and the compiler works there.
    """
    if choice != "auto":
        return choice == "yes"
    return device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can compile a trivial function; warns if not.

    It needs a C compiler, and on a GPU Triton.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:
        # Whatever is missing, each missing thing with an exception of its own: the run goes without.
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, so training goes on without: {reason}", stacklevel=2)
        return False
    return True
