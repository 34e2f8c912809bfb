"""Networks by name: the builder's name is the network's name."""

import inspect
from collections.abc import Callable
from typing import Any

from eeutils.models.multiexit import MultiExitNet

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
