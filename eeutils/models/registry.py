"""Networks by name."""

import json
from collections.abc import Callable
from numbers import Integral
from typing import Any

from eeutils.models.multiexit import MultiExitNet, Origin

_BUILDERS: dict[str, Callable[..., MultiExitNet]] = {}
_USUAL_SIZE = 32  # default image_size of all builders


def register_model(builder: Callable[..., MultiExitNet]) -> Callable[..., MultiExitNet]:
    """Make `builder` available to `create_model` under its own name; use it as a decorator.

    A builder takes the keywords `num_classes`, `in_channels`, `width`, `image_size`, `pool` and `exit_after`.

    Raises:
        ValueError: if another builder has that name; a notebook cell that defines it again may run again.
    """
    known = _BUILDERS.get(builder.__name__, builder)
    if (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise ValueError(f"name of a builder must be new, got {builder.__name__!r}, which {known.__module__} has")
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Return the names that `create_model` takes."""
    return sorted(_BUILDERS)


def create_model(name: str, **arguments: Any) -> MultiExitNet:
    """Build a network with fresh weights.

    Args:
        name: one of `list_models()`.
        arguments: of the builder, see `help(eeutils.models.<name>)`; all take

            - `num_classes`: logits per image;
            - `in_channels`: channels of an image;
            - `width`: channels of the first layers; cost grows with its square;
            - `image_size`: pixels of an image's shorter side;
            - `pool`: the heads of all exits, names of `list_pools()`: one for all, or one each, shallowest first,
              joined by "+". In `*_sdn` networks, the heads of the internal classifiers;
            - `exit_after`: indices of the units that early exits follow.

    Raises:
        ValueError: if the name is unknown, or an argument has a value that the builder does not take.
        TypeError: if the builder has no such argument.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {list_models()}, got {name!r}")
    net = _BUILDERS[name](**arguments)
    net.origin = _origin(name, arguments)
    return net


def fitting_arguments(num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the model arguments that depend on the dataset.

    Args:
        num_classes: of the data.
        image_shape: (C, H, W) of its images.
    """
    channels, height, width = image_shape
    arguments = {"num_classes": num_classes, "in_channels": channels}
    size = min(height, width)
    return arguments if size == _USUAL_SIZE else arguments | {"image_size": size}


def check_positive(**values: int) -> None:
    """Raise ValueError if an argument is not a whole number of 1 or more."""
    for name, value in values.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def _origin(name: str, arguments: dict[str, Any]) -> Origin | None:
    try:
        return Origin("eeutils", name, json.loads(json.dumps(arguments)))
    except TypeError:  # a builder of your own may take a module, say
        return None
