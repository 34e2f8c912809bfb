"""Whether a network has exits, and units and heads go together."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from eeutils.models.multiexit import Features, MultiExitNet, map_tensors


def check_exits(net: nn.Module) -> None:
    """See that `net` has exits, be it compiled or not.

    Raises:
        TypeError: if it has none.
    """
    if not hasattr(net, "num_exits"):
        raise TypeError(
            f"{type(net).__name__} has no exits; cut it into units with a head after some of them: "
            "eeutils.models.MultiExitNet(units, {unit: head, ...})"
        )


def check_exit_index(exit_index: int, num_exits: int) -> None:
    """See that there is such an exit; 0 is the shallowest.

    Raises:
        ValueError: that says which there are.
    """
    if not 0 <= exit_index < num_exits:
        raise ValueError(f"exit_index {exit_index} is not in 0..{num_exits - 1}")


def check_units(after: Collection[int]) -> None:
    """See that `after` names units in a way that can be read more than once.

    Raises:
        ValueError: that says how to name them.
    """
    if not isinstance(after, Collection):
        example = f"({after},)" if isinstance(after, int) else "(2, 4)"
        raise ValueError(f"the units that exits follow are a sequence, such as {example}, got {after!r}")


def check_early_exits(after: Collection[int], num_units: int) -> None:
    """See that early exits can follow the units `after`, each a unit of its own and none the last.

    Raises:
        ValueError: that names those which cannot be, and the choices.
    """
    check_units(after)
    if len(set(after)) != len(after):
        raise ValueError(f"two exits after one unit in {tuple(after)}")
    outside = [unit for unit in after if not 0 <= unit < num_units - 1]
    if outside:
        raise ValueError(
            f"no early exits after units {outside}: they follow units 0 to {num_units - 2}, and unit {num_units - 1}, "
            "the last, has the network's own classifier"
        )


def checked_answers(net: MultiExitNet, x: Tensor) -> list[Tensor]:
    """What `net(x)` answers, after seeing that heads and units go together.

    Raises:
        ValueError: if a unit or an exit cannot read what it is given (`reading`), an early exit writes into what the
            next unit reads (`left_alone`), or one answers other than logits (`check_answers`).
    """
    num_images, answers = len(x), []  # for `x` soon is what a unit hands on
    for last, stage in zip(net.exit_after, net.stages(), strict=True):
        for index, unit in enumerate(stage.units, last + 1 - len(stage.units)):
            with reading(x, f"unit {index}", unit):
                x = unit(x)
        with left_alone(x, last, len(net.units)), reading(x, f"exit after unit {last}", stage.head):
            answers.append(stage.answer(x))
        check_answers(answers[-1:], num_images)
    return answers


@contextmanager
def reading(features: Features, part: str, module: nn.Module) -> Iterator[None]:
    """See that `module`, asked within, can read `features`.

    Args:
        features: with the images first.
        part: which part of the network `module` is, such as "unit 3".
        module: a unit or a head.

    Raises:
        ValueError: if not; it names the part, and its cause is what `module` raised.
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
    """See that the exit after `unit`, asked within, leaves `features` alone: the next unit reads them as well.

    Raises:
        ValueError: if it writes into them and is not the last.
    """
    before = map_tensors(_writes, features)
    yield
    if unit < num_units - 1 and map_tensors(_writes, features) != before:
        raise ValueError(
            f"the exit after unit {unit} works in place on the feature map that unit {unit + 1} reads as well, so that "
            "deeper exits would answer otherwise; clone what it reads, or begin with a layer that is not in place"
        )


def check_answers(answers: Sequence[object], num_images: int) -> None:
    """See that what exits answered are logits (images, classes), of the same classes, two or more; no values are read.

    Raises:
        ValueError: that says what they answered.
    """
    shapes = [tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__ for answer in answers]
    classes = {shape[1] if len(shape) == 2 and shape[0] == num_images else 0 for shape in shapes}
    if len(classes) > 1 or min(classes) < 2:
        raise ValueError(
            f"exits must answer logits (N, classes), all of the same 2 classes or more, but for {num_images} images "
            f"they answer {', '.join(map(str, shapes))}"
        )


def _writes(tensor: Tensor) -> int:
    """How often something was written into `tensor` so far; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
