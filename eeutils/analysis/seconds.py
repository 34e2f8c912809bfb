"""Measure the seconds of one image up to each exit, on this machine."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from eeutils.analysis.predictions import check_split
from eeutils.data.splits import Split
from eeutils.engines import PreparedNet
from eeutils.models import MultiExitNet

Result = TypeVar("Result")

_WARM_UP = 3
_DISTINCT = 4  # time does not depend on what is in a batch, and every one kept takes memory on the device


def measure_seconds(
    net: MultiExitNet | PreparedNet,
    split: Split,
    *,
    batch_size: int = 1,
    batches: int = 50,
    device: torch.device | str | None = None,
    engine: str = "torch",
    precision: str | None = None,
    calibration: Split | None = None,
) -> Tensor:
    """(E,) float64, seconds of one image up to and including each exit, all heads passed counted: `Predictions.costs`.

    Multiply-adds are a rough guide to time: it goes by the machine, by the precision and by how many images come at a
    time. With these costs thresholds are chosen, and curves drawn, in seconds:

        seconds = measure_seconds(net, data.val, batch_size=1)
        choice = choose_thresholds(predict(net, data.val, costs=seconds), budget=0.5)  # half of the time

    Measured as `eeutils.cascade.Cascade` runs the network, on batches that nobody leaves; of each stage, from one exit
    to the next, the median over batches counts. What a cascade does besides is not in it: scores, parting those who
    stay, and batches that get smaller on their way down, which take longer an image.

    Args:
        net: the network; it is not changed.
        split: images to compute, those of its first four batches, again and again.
        batch_size: images at a time, as they will come to the cascade.
        batches: how many runs are timed, after a few that are not.
        device: where to compute; by default where the network is.
        engine, precision, calibration: what runs the network, as `Cascade` says. `net` may also be ready for an engine
            (`eeutils.engines.PreparedNet`).

    Raises:
        TypeError: if `net` has no exits, or `split` is no split.
        ValueError: if a unit or an exit of the network cannot read what it is given, an early exit's head works in
            place on what it reads, `batch_size` or `batches` is below 1, or there is no such device or engine.
    """
    check_split(split)
    if batches < 1:
        raise ValueError(f"batches must be positive, got {batches}")
    if not isinstance(net, PreparedNet):
        net = PreparedNet(net, engine, precision=precision, device=device, calibration=calibration)
    given = [images for images, _ in islice(split.batches(batch_size, net.device), _DISTINCT)]
    whole = [images for images in given if len(images) == len(given[0])]  # the last one may be smaller
    stages = stage_seconds(net, list(islice(cycle(whole), _WARM_UP + batches)))
    return stages[_WARM_UP:].median(0).values.cumsum(0) / len(whole[0])


@torch.inference_mode()
def stage_seconds(net: PreparedNet, batches: Sequence[Tensor]) -> Tensor:
    """(B, E) float64, how long each stage of `net` takes for each of the batches when nobody leaves."""
    device, marks = net.device, []
    for images in batches:
        stages = net.stages_for(images)
        marks.append([_mark(device)])
        x = stages.read(images)
        for run in stages.run:
            x, _ = run(x)
            marks[-1].append(_mark(device))
    now(device)
    return torch.tensor([[_between(*pair) for pair in pairwise(times)] for times in marks], dtype=torch.float64)


def timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds until the device has done `work`, and what it gave."""
    started = now(device)
    result = work()
    return now(device) - started, result


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """A moment in what the device is told to do; waiting for a GPU here would count the wait in."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Seconds; a GPU has to have got there."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
