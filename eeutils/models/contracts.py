"""Checks that units, exits and images fit together, on real images or on shapes alone."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eeutils.errors import require
from eeutils.models.memory import device_and_dtype, independent_copy, make_weights_permanent
from eeutils.models.multiexit import Features, MultiExitNet, map_tensors, uncompiled

# Where torch needs values it names the device ("cannot be called on meta tensors", "register_meta"), or a "fake impl"
# of quantized layers.
_NEEDS_VALUES = re.compile("(?<![a-z])meta(?![a-z])|fake impl", re.IGNORECASE)


def check_exits(net: nn.Module) -> MultiExitNet:
    """Return `net` without its `torch.compile` wrapper, or raise TypeError if it has no exits."""
    if not hasattr(net, "num_exits"):
        wraps_one = hasattr(getattr(net, "module", None), "num_exits")  # DataParallel, AveragedModel
        remedy = "pass net.module" if wraps_one else "add some with with_exits(net, after=[...])"
        raise TypeError(f"{type(net).__name__} has no exits; {remedy}")
    return uncompiled(net)


def check_units(name: str, units: Collection[int], allowed: Sequence[int]) -> None:
    """Raise ValueError unless `units` are different ones of those `allowed`."""
    fit = isinstance(units, Collection) and len(set(units)) == len(units) and set(units) <= set(allowed)
    choices = f"0..{len(allowed) - 1}" if isinstance(allowed, range) else list(allowed)
    require(fit, f"{name} must be different units in {choices}, got {units!r}")


def checked_answers(net: MultiExitNet, x: Tensor) -> list[Tensor]:
    """Return `net(x)`, or raise a ValueError that names the unit or exit that does not fit."""
    num_images, answers = len(x), []
    for last, stage in zip(net.exit_after, net.stages(), strict=True):
        for index, unit in enumerate(stage.units, last + 1 - len(stage.units)):
            with reading(x, f"unit {index}", unit):
                x = unit(x)
        with left_alone(x, last, len(net.units)), reading(x, f"exit after unit {last}", stage.head):
            answers.append(stage.answer(x))
        check_answers(answers[-2:], num_images)
    return answers


def check_answers(answers: Sequence[object], num_images: int) -> None:
    """Raise ValueError unless `answers` are logits (N, C) of the same two or more classes; values are not read."""
    shapes = [tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__ for answer in answers]
    classes = {shape[1] if len(shape) == 2 and shape[0] == num_images else 0 for shape in shapes}
    fit, got = len(classes) == 1 and min(classes) > 1, ", ".join(map(str, shapes))
    require(fit, f"exits must return logits ({num_images}, C) of the same 2 or more classes, got {got}")


@contextmanager
def reading(features: Features, part: str, module: nn.Module) -> Iterator[None]:
    """Turn an error of `module`, the network's `part`, into a ValueError that names it and the shape of `features`."""
    try:
        yield
    # A norm raises a ValueError, a missing dimension an IndexError, a tuple in place of a tensor a TypeError or an
    # AttributeError.
    except (RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        shape = map_tensors(lambda tensor: tuple(tensor.shape[1:]), features)
        hint = "; pass costs=measure_seconds(net, split) instead" if _NEEDS_VALUES.search(str(error)) else ""
        what = f"{part} ({type(module).__name__})"
        raise ValueError(f"a feature map of shape {shape} does not fit the network's {what}: {error}{hint}") from error


@contextmanager
def left_alone(features: Features, unit: int, num_units: int) -> Iterator[None]:
    """Raise ValueError if the exit after `unit` writes into `features` and another unit reads them."""
    before = map_tensors(_version, features)
    yield
    must = f"clone the feature map that unit {unit + 1} reads as well"
    is_whole = unit == num_units - 1 or map_tensors(_version, features) == before
    require(is_whole, f"the exit after unit {unit} must {must}, got one that works in place")


def _version(tensor: Tensor) -> int:
    """Return how often `tensor` was written into; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def without_hooks(net: MultiExitNet) -> MultiExitNet:
    """Return a copy of `net` in evaluation mode that calls no hooks; weights that hooks compute are kept."""
    copy = independent_copy(net)
    make_weights_permanent(copy)
    for module in copy.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return copy.eval()


def on_meta(net: MultiExitNet) -> MultiExitNet:
    """Return a copy of `net` that computes shapes alone: on the meta device, in evaluation mode, without hooks."""
    net = check_exits(net)
    device_and_dtype(net)  # raises if a layer is lazy
    return without_hooks(net).to("meta", torch.float32).requires_grad_(False)


@torch.no_grad()  # not inference_mode: there FlopCounterMode breaks on parametrised modules
def count_macs(module: nn.Module, x: Features, part: str) -> tuple[float, Features]:
    """Return the multiply-adds of `module`, the `part` of a network `on_meta`, and its output for `x`."""
    with reading(x, part, module), FlopCounterMode(display=False) as counter:
        y = module(x)
    return counter.get_total_flops() / 2, y


def walk_units(net: MultiExitNet, image_shape: tuple[int, int, int]) -> Iterator[tuple[float, Features]]:
    """Yield the multiply-adds of each unit of a network `on_meta` for one image (C, H, W), and its feature map."""
    x = torch.empty(1, *image_shape, device="meta")
    for index, unit in enumerate(net.units):
        macs, x = count_macs(unit, x, f"unit {index}")
        yield macs, x
