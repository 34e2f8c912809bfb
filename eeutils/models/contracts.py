"""Checks of a network's structure: it has exits, and its units and heads fit together."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from eeutils.models.multiexit import Features, MultiExitNet, map_tensors, uncompiled


def check_exits(net: nn.Module) -> MultiExitNet:
    """Return `net` without its `torch.compile` wrapper.

    Raises:
        TypeError: if it has no exits.
    """
    if not hasattr(net, "num_exits"):
        wraps_one = hasattr(getattr(net, "module", None), "num_exits")  # DataParallel, AveragedModel
        remedy = "pass net.module" if wraps_one else "cut it into units: MultiExitNet(units, {unit: head, ...})"
        raise TypeError(f"{type(net).__name__} has no exits; {remedy}")
    return uncompiled(net)


def check_exit_index(exit_index: int, num_exits: int) -> None:
    """Raise ValueError if there is no exit `exit_index`; 0 is the shallowest."""
    if not 0 <= exit_index < num_exits:
        raise ValueError(f"exit_index must be in 0..{num_exits - 1}, got {exit_index}")


def check_early_exits(after: Collection[int], num_units: int) -> None:
    """Raise ValueError unless early exits can follow the units `after`."""
    is_collection = isinstance(after, Collection)
    if not is_collection or len(set(after)) < len(after) or not set(after) <= set(range(num_units - 1)):
        raise ValueError(
            f"units before early exits must be distinct and in 0..{num_units - 2}, such as (1, 2), got {after!r}; "
            "the last unit has the network's own classifier"
        )


def checked_answers(net: MultiExitNet, x: Tensor) -> list[Tensor]:
    """Return `net(x)`, with all checks of this module on the way.

    Raises:
        ValueError: if a unit or head cannot read its input, an early head writes into it, or an exit returns other than
            logits.
    """
    num_images, answers = len(x), []
    for last, stage in zip(net.exit_after, net.stages(), strict=True):
        for index, unit in enumerate(stage.units, last + 1 - len(stage.units)):
            with reading(x, f"unit {index}", unit):
                x = unit(x)
        with left_alone(x, last, len(net.units)), reading(x, f"exit after unit {last}", stage.head):
            answers.append(stage.answer(x))
        check_answers(answers[-2:], num_images)
    return answers


@contextmanager
def reading(features: Features, part: str, module: nn.Module) -> Iterator[None]:
    """Turn any error of `module` while it reads `features` into one that names both.

    Args:
        features: input of `module`, images first.
        part: name of `module` in the network, such as "unit 3".
        module: a unit or a head.

    Raises:
        ValueError: its cause is the error of `module`.
    """
    try:
        yield
    # Misfits raise all of these: a norm a ValueError, a dimension too few an IndexError, a tuple given to a layer that
    # takes a tensor a TypeError or an AttributeError.
    except (RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        shape = map_tensors(lambda tensor: tuple(tensor.shape[1:]), features)
        raise ValueError(
            f"a feature map of shape {shape} does not fit the network's {part} ({type(module).__name__}): {error}"
        ) from error


@contextmanager
def left_alone(features: Features, unit: int, num_units: int) -> Iterator[None]:
    """Raise ValueError if the exit after `unit` writes into `features` and another unit reads them."""
    before = map_tensors(_version, features)
    yield
    if unit < num_units - 1 and map_tensors(_version, features) != before:
        raise ValueError(
            f"the exit after unit {unit} works in place on the feature map that unit {unit + 1} reads as well; "
            "clone what it reads"
        )


def check_answers(answers: Sequence[object], num_images: int) -> None:
    """Raise ValueError unless exits returned logits (N, C) of the same two or more classes; no values are read."""
    shapes = [tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__ for answer in answers]
    classes = {shape[1] if len(shape) == 2 and shape[0] == num_images else 0 for shape in shapes}
    if len(classes) > 1 or min(classes) < 2:
        got = ", ".join(map(str, shapes))
        raise ValueError(f"exits must answer logits ({num_images}, C) of the same 2 or more classes, got {got}")


def _version(tensor: Tensor) -> int:
    """Count the writes into `tensor`; tensors of inference mode do not."""
    return 0 if tensor.is_inference() else tensor._version
