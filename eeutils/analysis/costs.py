"""Costs of an image up to each exit: multiply-adds and parameters, or seconds on this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import torch
from torch import Tensor, nn

from eeutils.analysis.policies import ThresholdPolicy, leaving
from eeutils.data.splits import Split, check_split
from eeutils.engines import PreparedNet
from eeutils.fields import check_range
from eeutils.models import MultiExitNet
from eeutils.models.contracts import count_macs, left_alone, on_meta, walk_units

_SCORING = ThresholdPolicy(1.0)
_WARM_UP = 3
_DISTINCT = 4  # time does not depend on a batch's values, and every batch kept takes memory on the device


@dataclass(frozen=True)
class NetworkCosts:
    """Multiply-adds of one image and parameters, part by part.

    Multiply-adds are those that `torch.utils.flop_counter` knows: convolutions, matrix products, attention. A network
    with custom operators, such as `torchvision.ops.DeformConv2d`, needs another measure:
    `predict(..., costs=measure_seconds(net, split))`.
    """

    unit_macs: Tensor  # (U,) float64 of each backbone unit
    exit_macs: Tensor  # (E,) float64 of each exit's head
    unit_params: Tensor  # (U,) int64
    exit_params: Tensor  # (E,) int64
    exit_after: tuple[int, ...]  # the unit that each exit follows

    @property
    def cumulative_macs(self) -> Tensor:
        """(E,) float64, of the units and *all* heads up to each exit."""
        return self._up_to_exits(self.unit_macs, self.exit_macs)

    @property
    def cumulative_params(self) -> Tensor:
        """(E,) int64, of the units and all heads up to each exit."""
        return self._up_to_exits(self.unit_params, self.exit_params)

    def _up_to_exits(self, of_units: Tensor, of_exits: Tensor) -> Tensor:
        return of_units.cumsum(0)[list(self.exit_after)] + of_exits.cumsum(0)


@torch.inference_mode(False)  # its tensors have no version counter, which shows heads that work in place
def measure_costs(net: MultiExitNet, image_shape: tuple[int, int, int]) -> NetworkCosts:
    """Count the costs of `net` for one image of `image_shape` (C, H, W), on shapes alone and without its hooks."""
    net = on_meta(net)
    unit_macs, features = zip(*walk_units(net, image_shape), strict=True)
    exit_macs = []
    for unit, stage in zip(net.exit_after, net.stages(), strict=True):
        with left_alone(features[unit], unit, len(net.units)):
            exit_macs.append(count_macs(stage.head, stage.read(features[unit]), f"exit after unit {unit}")[0])
    return NetworkCosts(
        unit_macs=torch.tensor(unit_macs, dtype=torch.float64),
        exit_macs=torch.tensor(exit_macs, dtype=torch.float64),
        unit_params=torch.tensor([_params(unit) for unit in net.units]),
        exit_params=torch.tensor([_params(head) for head in net.exits.values()]),
        exit_after=net.exit_after,
    )


def exit_costs(net: MultiExitNet, image_shape: tuple[int, int, int]) -> Tensor:
    """Return the (E,) float64 multiply-adds of one image up to each exit, with all heads on the way."""
    return measure_costs(net, image_shape).cumulative_macs


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
    """Return the (E,) float64 seconds of one image up to each exit, all heads passed included: `Predictions.costs`.

    Multiply-adds are a rough guide to time, which depends on the machine, the precision and the batch size. With these
    costs thresholds are chosen, and curves drawn, in seconds:

        seconds = measure_seconds(net, data.val, batch_size=1)
        choice = choose_thresholds(predict(net, data.val, costs=seconds), budget=0.5)  # half of the time

    Runs the network as `eeutils.cascade.Cascade` does, on batches that no image leaves, and takes the median of each
    stage and the score of its exit. Left out are the sorting of images that stay, and the lower efficiency of batches
    that shrink on their way.

    Args:
        net: the network, which is not changed, or a `eeutils.engines.PreparedNet`.
        split: images to compute: those of its first four batches, again and again.
        batch_size: images at a time, as they will come to the cascade.
        batches: timed runs, after a few that are not.
        device: where to compute; by default where the network is.
        engine, precision, calibration: see `Cascade`.
    """
    check_split(split)
    check_range("batches", batches, 1)
    if not isinstance(net, PreparedNet):
        net = PreparedNet(net, engine, precision=precision, device=device, calibration=calibration)
    given = [images for images, _ in islice(split.batches(batch_size, net.device), _DISTINCT)]
    whole = [images for images in given if len(images) == len(given[0])]  # the last one may be smaller
    stages = stage_seconds(net, list(islice(cycle(whole), _WARM_UP + batches)), scored=True)
    return stages[_WARM_UP:].median(0).values.cumsum(0) / len(whole[0])


def measure_head_seconds(net: PreparedNet, split: Split, seconds: Tensor, **options: int) -> Tensor:
    """Return the (E,) float64 seconds that each early exit saves if it is switched off: `Predictions.head_costs`.

    What all early exits add to the network's time is shared equally among them, because an exit costs a call of the
    engine and not its head alone:

        seconds = measure_seconds(ready, data.val)
        heads = measure_head_seconds(ready, data.val, seconds)  # with the same options
        choice = choose_thresholds(replace(table, costs=seconds, head_costs=heads), budget=0.5)
    """
    last = net.num_exits - 1
    saved = (seconds[-1] - measure_seconds(net.keeping([last]), split, **options)[-1]).clamp(min=0)
    heads = torch.full_like(seconds, float(saved) / max(last, 1))
    heads[last] = 0
    return heads.minimum(seconds.diff(prepend=seconds.new_zeros(1)))


@torch.inference_mode()
def stage_seconds(net: PreparedNet, batches: Sequence[Tensor], *, scored: bool = False) -> Tensor:
    """(B, E) float64, seconds of each stage of `net`, and of early scores, for each batch when no image leaves."""
    device, marks = net.device, []
    for images in batches:
        with net.undisturbed(images):
            stages = net.stages_for(images)
            marks.append([_mark(device)])
            x = stages.read(images)
            for run in stages.run:
                x, logits = run(x)
                if scored and run is not stages.run[-1]:
                    leaving(_SCORING, logits[None])
                marks[-1].append(_mark(device))
    now(device)
    return torch.tensor([[_between(*pair) for pair in pairwise(times)] for times in marks], dtype=torch.float64)


def now(device: torch.device) -> float:
    """Read the clock once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """Mark this moment in the device's queue; waiting for a GPU here would add to what is measured."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
