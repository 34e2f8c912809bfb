"""Side-by-side measurements, run by hand: `python -m tools.benchmarks.<name>`."""

from collections.abc import Callable
from typing import TypeVar

import torch

from eeutils.analysis.costs import now

Result = TypeVar("Result")


def timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Return the seconds until the device has done `work`, and its result."""
    started = now(device)
    result = work()
    return now(device) - started, result
