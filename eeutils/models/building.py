"""What every builder of a network does."""

from collections.abc import Sequence
from numbers import Integral

from torch import nn

from eeutils.models.exits import pool_of_each_exit
from eeutils.models.layers import initialise
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.sdn import with_internal_classifiers


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
