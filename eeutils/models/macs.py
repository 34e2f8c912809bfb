"""Multiply-adds, counted on the meta device: shapes without numbers, so nothing is computed."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eeutils.models.contracts import check_exits, reading
from eeutils.models.memory import check_sizes, independent_copy, make_weights_permanent
from eeutils.models.multiexit import Features, MultiExitNet

# Where torch needs numbers it names the device ("cannot be called on meta tensors", "register_meta"), or of quantized
# layers a "fake impl"; where shapes do not fit it names neither.
_NEEDS_NUMBERS = re.compile("(?<![a-z])meta(?![a-z])|fake impl", re.IGNORECASE)


def on_meta(net: MultiExitNet) -> MultiExitNet:
    """Return a copy of `net` on the meta device, in evaluation mode and without hooks.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if a lazy layer has no weights yet.
    """
    net = check_exits(net)
    check_sizes(net)
    copy = independent_copy(net)
    make_weights_permanent(copy)
    for module in copy.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return copy.to("meta", torch.float32).eval().requires_grad_(False)


@torch.no_grad()  # not inference_mode: there FlopCounterMode breaks on parametrised modules
def count_macs(module: nn.Module, x: Features, part: str) -> tuple[float, Any]:
    """Return the multiply-adds of `module(x)` and its output; see `eeutils.analysis.costs.NetworkCosts`.

    Args:
        module: a unit or a head of a network `on_meta`.
        x: its input, on the meta device.
        part: its name in errors, such as "unit 3".

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
            f"the network's {part} ({type(module).__name__}) cannot be counted on shapes alone (device meta); pass "
            f"costs=measure_seconds(net, split) to predict or to run of a Cascade: {error}"
        ) from error
    return counter.get_total_flops() / 2, y


def walk_units(net: MultiExitNet, image_shape: tuple[int, int, int]) -> Iterator[tuple[float, Features]]:
    """Yield the multiply-adds of each unit for one image, and the feature map after it on the meta device.

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
