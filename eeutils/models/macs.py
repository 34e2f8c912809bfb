"""Multiply-adds, counted on shapes alone: on the meta device nothing is computed."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eeutils.models.multiexit import Features, MultiExitNet, map_tensors


def on_meta(net: MultiExitNet) -> MultiExitNet:
    """A copy of `net` with shapes and no numbers, in evaluation mode."""
    return deepcopy(net).to("meta", torch.float32).eval()


@torch.no_grad()  # not inference_mode: there FlopCounterMode breaks on parametrised modules
def count_macs(module: nn.Module, x: Features) -> tuple[float, Any]:
    """Multiply-adds of `module(x)` in convolutions and linear layers, and its answer; both on the meta device.

    Raises:
        ValueError: if `module` cannot read `x`, or needs numbers and not shapes alone.
    """
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            y = module(x)
    except (RuntimeError, AssertionError) as error:
        shape = map_tensors(lambda tensor: tuple(tensor.shape[1:]), x)
        raise ValueError(
            f"a feature map of shape {shape} does not fit the network, or its {type(module).__name__} "
            "cannot be counted on shapes alone (device meta) and wants another measure, as in predict(..., "
            f"costs=measure_seconds(net, split)): {error}"
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
    for unit in net.units:
        macs, x = count_macs(unit, x)
        yield macs, x
