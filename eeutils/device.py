"""Where to compute, and what that is called."""

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
