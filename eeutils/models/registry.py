"""Networks by name."""

import json
from collections.abc import Callable
from contextlib import suppress
from numbers import Integral
from typing import Any

from eeutils.errors import require
from eeutils.fields import check_choice
from eeutils.models.multiexit import MultiExitNet, Origin

_BUILDERS: dict[str, Callable[..., MultiExitNet]] = {}
_USUAL_SIZE = 32  # default image_size of all builders
_LEAST = {"num_classes": 2, "in_channels": 1, "width": 1, "image_size": 1}


def register_model(builder: Callable[..., MultiExitNet]) -> Callable[..., MultiExitNet]:
    """Make `builder` available to `create_model` under its own name; use it as a decorator.

    A builder takes the keywords `num_classes`, `in_channels`, `width`, `image_size`, `pool` and `exit_after`. A cell
    of a notebook may define one again; a name that another module's builder has is refused.
    """
    known = _BUILDERS.get(builder.__name__, builder)
    same = (known.__module__, known.__qualname__) == (builder.__module__, builder.__qualname__)
    require(same, f"name of a builder must be new, got {builder.__name__!r}, which {known.__module__} has")
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Return the names that `create_model` takes."""
    return sorted(_BUILDERS)


def create_model(name: str, **arguments: Any) -> MultiExitNet:
    """Build the network `name`, one of `list_models()`, with fresh weights.

    `help(eeutils.models.<name>)` names the units, and further arguments. All builders take

    - `num_classes`: logits per image, at least 2;
    - `in_channels`: channels of an image;
    - `width`: channels of the first layers; the default is the published network, cost grows with its square;
    - `image_size`: pixels of an image's shorter side, for "mixed" heads; most networks read any size;
    - `exit_after`: indices of the units that early exits follow;
    - `pool`: the heads of all exits, names of `list_pools()`: one for all, or one each, shallowest first,
      joined by "+": "conv+spp+avg". None puts internal classifiers before the network's own classifier. In
      `*_sdn` networks, the heads of the internal classifiers.
    """
    check_choice("model", name, list_models())
    for size in _LEAST.keys() & arguments.keys():
        least, value = _LEAST[size], arguments[size]
        fits = isinstance(value, Integral) and value >= least
        require(fits, f"{size} must be a whole number from {least} on, got {value!r}")
    net = _BUILDERS[name](**arguments)
    net.origin = None
    with suppress(TypeError):  # a builder of your own may take a module, say
        net.origin = Origin("eeutils", name, json.loads(json.dumps(arguments)))
    return net


def fitting_arguments(num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the arguments of `create_model` that depend on the data; `image_shape` is (C, H, W)."""
    channels, height, width = image_shape
    arguments = {"num_classes": num_classes, "in_channels": channels}
    size = min(height, width)
    return arguments if size == _USUAL_SIZE else arguments | {"image_size": size}
