"""Shallow-Deep Networks: a CNN with internal classifiers at given shares of its cost.

Kaya, Hong & Dumitras, ICML 2019, arXiv 1810.07052. The networks themselves (`vgg16_sdn`, `resnet56_sdn`,
`wideresnet32_4_sdn`, `mobilenet_sdn`, `resnet18_sdn`) stand beside the CNNs that they are made of.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from eeutils.models.contracts import check_early_exits
from eeutils.models.exits import create_exit, pool_of_each_exit
from eeutils.models.layers import initialise
from eeutils.models.macs import count_macs, on_meta, walk_units
from eeutils.models.memory import a_weight
from eeutils.models.multiexit import Features, MultiExitNet, map_tensors
from eeutils.models.surgery import add_exits

SDN_SHARES = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)


def exits_at_cost(net: MultiExitNet, shares: Sequence[float], image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The units after which the backbone's cumulative multiply-adds first reach the given shares of its total.

    Heads are not counted, so the places depend neither on the exits that `net` has nor on the number of classes. The
    authors of Shallow-Deep Networks list the places in their code, near these shares and often just before them.

    Args:
        net: any network.
        shares: above 0 and below 1, rising.
        image_shape: (C, H, W) of the images it is to see.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if shares are not like that, if one is reached by the last unit alone (it has the network's own
            classifier), if two are reached by one unit, or if the network cannot read such images.
    """
    shares = tuple(shares)
    if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"shares of the cost must rise and be above 0 and below 1, got {shares}")
    reached = list(accumulate(macs for macs, _ in walk_units(on_meta(net), image_shape)))
    places = tuple(next(unit for unit, macs in enumerate(reached) if macs >= share * reached[-1]) for share in shares)
    by_unit = f"after each unit the network has spent {[round(macs / reached[-1], 3) for macs in reached]}"
    if places and places[-1] == len(reached) - 1:
        raise ValueError(f"no unit before the last reaches a share of {shares[-1]}: {by_unit}")
    if len(set(places)) < len(places):
        raise ValueError(f"shares {shares} would put two exits after one unit (units {places}): {by_unit}")
    return places


def with_internal_classifiers(
    net: MultiExitNet,
    image_shape: tuple[int, int, int],
    *,
    after: Sequence[int] | None = None,
    pool: str = "mixed",
) -> MultiExitNet:
    """A new network: `net`, trained or not, and fresh early exits beside those it has.

    Everything is copied: training the new network leaves `net` as it is. The exits have as many outputs as its last
    one. `TrainConfig(trained="early_exits")` trains them and nothing else.

    Args:
        net: any network.
        image_shape: (C, H, W) of the images it is to see; the size of each exit follows from it.
        after: units that get an exit; None stands for the six places of Shallow-Deep Networks,
            `exits_at_cost(net, SDN_SHARES, image_shape)`.
        pool: how they pool their feature maps, one of `list_pools()`, or one for each of them, joined by "+", the
            shallowest first.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if a unit does not exist, is named twice or has an exit already, gives no feature map (C, H, W),
            `pool` is unknown, or the network cannot read such images.
    """
    shapes = on_meta(net)
    if after is None:
        after = exits_at_cost(net, SDN_SHARES, image_shape)
    check_early_exits(after, len(net.units))
    pools = pool_of_each_exit(pool, len(after))
    features = [feature for _, feature in walk_units(shapes, image_shape)]
    last = len(features) - 1
    _, answer = count_macs(shapes.exits[str(last)], features[last], f"exit after unit {last}")
    weight = a_weight(net)
    heads = {}
    for unit, each in zip(sorted(after), pools, strict=True):
        channels, height, width = _map_shape(unit, features[unit])
        head = initialise(create_exit(each, channels, answer.shape[1], min(height, width)))
        heads[unit] = head.to(weight).train(net.training)
    return add_exits(net, heads)


def _map_shape(unit: int, features: Features) -> tuple[int, int, int]:
    if not isinstance(features, Tensor) or features.ndim != 4:
        given = map_tensors(lambda tensor: tuple(tensor.shape[1:]), features)
        raise ValueError(
            f"unit {unit} gives tensors of shape {given} and these heads read feature maps (C, H, W); make "
            "heads of your own and use add_exits(net, {unit: head, ...})"
        )
    return tuple(features.shape[1:])


def shallow_deep(
    builder: Callable[..., MultiExitNet],
    *,
    in_channels: int = 3,
    image_size: int = 32,
    pool: str = "mixed",
    **kwargs: Any,
) -> MultiExitNet:
    """What `builder` builds, with six internal classifiers at `SDN_SHARES` of its cost.

    Args:
        builder: of a plain CNN.
        in_channels: channels of an image.
        image_size: pixels a side.
        pool: how each early exit pools its feature map.
        kwargs: the builder's other arguments, without `exit_after`.

    Raises:
        ValueError: as the builder, and if `exit_after` is given.
    """
    net = plain_network(builder, in_channels=in_channels, image_size=image_size, **kwargs)
    return with_internal_classifiers(net, (in_channels, image_size, image_size), pool=pool)


def plain_network(builder: Callable[..., MultiExitNet], **kwargs: Any) -> MultiExitNet:
    """What `builder` builds, without early exits.

    Raises:
        ValueError: as the builder, and if `exit_after` is given: internal classifiers have other places.
    """
    if "exit_after" in kwargs:
        raise ValueError(
            f"exit_after={kwargs['exit_after']}: internal classifiers stand where the network's cost reaches given "
            f"shares, not after units that one chooses; for that there is {builder.__name__}(exit_after=...)"
        )
    return builder(exit_after=(), **kwargs)
