"""Multiply-adds, counted on shapes alone: on the meta device nothing is computed."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eeutils.models.contracts import check_exits, reading
from eeutils.models.memory import check_sizes
from eeutils.models.multiexit import Features, MultiExitNet

# Where numbers are looked at torch names the device ("cannot be called on meta tensors", "register_meta"); where shapes
# do not fit it says nothing of it.
_NEEDS_NUMBERS = re.compile("(?<![a-z])meta(?![a-z])", re.IGNORECASE)


def on_meta(net: MultiExitNet) -> MultiExitNet:
    """A copy of `net` with shapes and no numbers, in evaluation mode.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if a lazy layer of it has no weights yet.
    """
    check_exits(net)
    check_sizes(net)
    return deepcopy(net).to("meta", torch.float32).eval()


@torch.no_grad()  # not inference_mode: there FlopCounterMode breaks on parametrised modules
def count_macs(module: nn.Module, x: Features, part: str) -> tuple[float, Any]:
    """Multiply-adds of `module(x)`, and its answer; both on the meta device.

    `eeutils.analysis.costs.NetworkCosts` says what is counted, and what is to be done about the rest.

    Args:
        module: a unit or a head of a network `on_meta`.
        x: what it reads.
        part: which part of the network it is, such as "unit 3".

    Raises:
        ValueError: if `module` cannot read `x`, or needs numbers and not shapes alone.
    """
    counter = FlopCounterMode(display=False)
    try:
        with reading(x, part, module), counter:
            y = module(x)
    except ValueError as misfit:
        error = misfit.__cause__
        if not _NEEDS_NUMBERS.search(str(error)):
            raise
        raise ValueError(
            f"the network's {part} ({type(module).__name__}) cannot be counted on shapes alone (device meta) and wants "
            f"another measure: predict, and run of a Cascade, take costs=measure_seconds(net, split): {error}"
        ) from error
    return counter.get_total_flops() / 2, y


def walk_units(net: MultiExitNet, image_shape: tuple[int, int, int]) -> Iterator[tuple[float, Features]]:
    """Multiply-adds of each unit for one image, and the feature map after it, (1, C, H, W) on the meta device.

    Args:
        net: a network `on_meta`.
        image_shape: (C, H, W).

    Raises:
        ValueError: if the units cannot read such an image.
    """
    x = torch.empty(1, *image_shape, device="meta")
    for index, unit in enumerate(net.units):
        macs, x = count_macs(unit, x, f"unit {index}")
        yield macs, x
