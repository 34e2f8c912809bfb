"""Shallow-Deep Networks: a CNN with internal classifiers at given shares of its cost.

Kaya, Hong & Dumitras, ICML 2019, arXiv 1810.07052. The builders stand beside those of the CNNs: `vgg16_sdn`,
`resnet56_sdn`, `wideresnet32_4_sdn`, `mobilenet_sdn`, `resnet18_sdn`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from eeutils.errors import require
from eeutils.models.contracts import check_exits, check_units, checked_answers, on_meta, walk_units
from eeutils.models.exits import fresh_exits
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
from eeutils.models.surgery import add_exits

SDN_SHARES = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)


def exits_at_cost(net: MultiExitNet, shares: Sequence[float], image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Find the units after which the backbone's cumulative multiply-adds are nearest to shares of its total.

    Heads are not counted, so the places depend neither on the exits of `net` nor on the number of classes. The last
    unit, which has the network's own classifier, is left out. At `SDN_SHARES` these are the places in the code of
    Shallow-Deep Networks: (1, 3, 5, 6, 8, 9) in VGG16, (4, 8, 12, 16, 20, 24) in ResNet56. In MobileNet the authors use
    five places, because their profiler counts depthwise convolutions once per group; by true cost there are six.
    """
    macs = list(accumulate(macs for macs, _ in walk_units(on_meta(net), image_shape)))
    reached = [each / macs[-1] for each in macs]
    places = [min(range(len(reached) - 1), key=lambda unit: abs(reached[unit] - share)) for share in shares]
    fit = places == sorted(set(places)) and all(0 < share < 1 for share in shares)
    got = f"{tuple(shares)}; units reach {[round(share, 3) for share in reached]}"
    require(fit, f"shares must rise from above 0 to below 1, each nearest to another unit, got {got}")
    return tuple(places)


def with_internal_classifiers(
    net: MultiExitNet, image_shape: tuple[int, int, int], *, after: Sequence[int] | None = None, pool: str = "mixed"
) -> MultiExitNet:
    """Return a copy of `net`, trained or not, with fresh early exits beside those it has.

    The new exits have as many outputs as the last one. `TrainConfig(trained="early_exits")` trains them alone.

    Args:
        image_shape: (C, H, W); sizes of the exits follow from it.
        after: units that get an exit; by default `exits_at_cost(net, SDN_SHARES, image_shape)`.
        pool: the heads of these exits, see `create_model`.
    """
    net = check_exits(net)
    if after is None:
        after = exits_at_cost(net, SDN_SHARES, image_shape)
    check_units("after", after, range(len(net.units) - 1))
    num_classes = checked_answers(on_meta(net), torch.empty(1, *image_shape, device="meta"))[-1].shape[1]
    heads = fresh_exits(net.units, after, image_shape, pool, num_classes)
    return add_exits(net, {unit: head.to(*device_and_dtype(net)) for unit, head in heads.items()})


def shallow_deep(builder: Callable[..., MultiExitNet]) -> Callable[..., MultiExitNet]:
    """Register `<builder>_sdn`, which builds the CNN of `builder` with internal classifiers, and return it."""

    def build(
        *,
        pool: str = "mixed",
        exit_after: Sequence[int] | None = None,
        in_channels: int = 3,
        image_size: int = 32,
        **kwargs: Any,
    ) -> MultiExitNet:
        net = builder(in_channels=in_channels, image_size=image_size, **kwargs)
        return with_internal_classifiers(net, (in_channels, image_size, image_size), after=exit_after, pool=pool)

    build.__name__ = build.__qualname__ = f"{builder.__name__}_sdn"
    build.__module__ = builder.__module__
    build.__doc__ = f"""`{builder.__name__}` as a Shallow-Deep Network.

    The last exit is the CNN's own classifier. `pool` names the heads of the internal classifiers, which by default
    stand at `SDN_SHARES` of the cost.
    """
    return register_model(build)
