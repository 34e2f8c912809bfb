"""Python's own numbers and words in place of numpy's and torch's, which a checkpoint may not hold."""

from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor


def plain(value: Any) -> Any:
    """`value` as Python's own numbers, words and tuples of them.

    Args:
        value: what numpy or torch hold, or lists and tuples of such; anything else is handed back as it is.
    """
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def make_plain(config: Any) -> None:
    """`plain` for every field of a dataclass, frozen or not: a line of its `__post_init__`."""
    for each in fields(config):
        object.__setattr__(config, each.name, plain(getattr(config, each.name)))
