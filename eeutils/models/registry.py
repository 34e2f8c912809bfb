"""Networks by name, and the steps that every builder shares."""

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from eeutils.models.exits import pool_of_each_exit
from eeutils.models.layers import initialise
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.sdn import with_internal_classifiers

_BUILDERS: dict[str, Callable[..., MultiExitNet]] = {}


def register_model(builder: Callable[..., MultiExitNet]) -> Callable[..., MultiExitNet]:
    """Make `builder` known to `create_model` under its own name (a decorator).

    Raises:
        ValueError: if another builder has that name; the same one defined anew (a notebook's cell run again) may.
    """
    known = _BUILDERS.get(builder.__name__, builder)
    if (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise ValueError(
            f"{builder.__name__!r} is the name of the builder in {known.__module__} already; give yours another"
        )
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(_BUILDERS)


def create_model(name: str, **kwargs: Any) -> MultiExitNet:
    """Build a network with fresh weights.

    Args:
        name: one of `list_models()`.
        kwargs: the builder's own arguments, e.g. `num_classes`, `pool`, `width`; see `help(eeutils.models.<name>)`.

    Raises:
        ValueError: if the name is unknown, or an argument has a value the builder does not take.
        TypeError: if the builder has no such argument.
    """
    return _builder(name)(**kwargs)


def takes_argument(name: str, argument: str) -> bool:
    """Whether the builder of that name has an argument of its own of that name.

    Raises:
        ValueError: if the name is unknown.
    """
    return argument in inspect.signature(_builder(name)).parameters


def _builder(name: str) -> Callable[..., MultiExitNet]:
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; choose from {list_models()}")
    return _BUILDERS[name]


def check_positive(**values: int) -> None:
    """See that arguments which count something are whole numbers, 1 or more.

    Raises:
        ValueError: that names the first one which is not.
    """
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def assemble(
    units: Sequence[nn.Module],
    head: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    exit_after: Sequence[int],
    pool: str,
) -> MultiExitNet:
    """A network with fresh weights: a backbone, its own classifier `head`, and early exits after some of its units.

    The backbone draws its weights first: with one seed they are the same whatever the exits.

    Raises:
        ValueError: if `exit_after` names no such units, or `pool` no such heads.
    """
    pool_of_each_exit(pool, len(exit_after))  # a plain network, too, is refused a wrong one
    net = initialise(MultiExitNet(units, {len(units) - 1: head}))
    if not exit_after:
        return net
    return with_internal_classifiers(net, image_shape, after=exit_after, pool=pool)


_USUAL_SIZE = 32  # what builders take images to be


def fitting_arguments(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """What `create_model(name, ...)` has to be told of the data.

    Args:
        name: of a network.
        num_classes: of the data.
        image_shape: channels, height and width of its images.

    Returns:
        `num_classes`, `in_channels`; and `image_size`, the shorter side, if that is not 32 pixels and the builder asks.
        Builders that do not ask make networks that read any size; one that asks may refuse this size when it is told.

    Raises:
        ValueError: if there is no such network.
    """
    channels, height, width = image_shape
    arguments = {"num_classes": num_classes, "in_channels": channels}
    size = min(height, width)
    if takes_argument(name, "image_size") and size != _USUAL_SIZE:
        arguments["image_size"] = size
    return arguments
