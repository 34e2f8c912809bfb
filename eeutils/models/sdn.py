"""Shallow-Deep Networks: a CNN with internal classifiers at given shares of its cost.

Kaya, Hong & Dumitras, ICML 2019, arXiv 1810.07052. The builders (`vgg16_sdn`, `resnet56_sdn`, `wideresnet32_4_sdn`,
`mobilenet_sdn`, `resnet18_sdn`) stand beside those of the CNNs.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from eeutils.models.contracts import check_early_exits
from eeutils.models.exits import create_exit, pool_of_each_exit
from eeutils.models.layers import initialise
from eeutils.models.macs import count_macs, on_meta, walk_units
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import Features, MultiExitNet, map_tensors
from eeutils.models.surgery import add_exits

SDN_SHARES = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)


def exits_at_cost(net: MultiExitNet, shares: Sequence[float], image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Find the units after which the backbone's cumulative multiply-adds are nearest to shares of its total.

    Heads are not counted, so the places depend neither on the exits that `net` has nor on the number of classes. The
    last unit is no choice, because it has the network's own classifier. At `SDN_SHARES` these are the places in the
    code of Shallow-Deep Networks: (1, 3, 5, 6, 8, 9) in VGG16, (4, 8, 12, 16, 20, 24) in ResNet56. Of MobileNet the
    authors use five places, because their profiler counts depthwise convolutions once for each group; by true cost
    there are six: (2, 4, 7, 8, 10, 12).

    Args:
        net: any network.
        shares: above 0 and below 1, rising.
        image_shape: (C, H, W) of its images.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if shares do not rise within 0 and 1, two of them have the same nearest unit, or the network cannot
            read images of that shape.
    """
    shares = tuple(shares)
    if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"shares of the cost must rise and be above 0 and below 1, got {shares}")
    macs = list(accumulate(macs for macs, _ in walk_units(on_meta(net), image_shape)))
    reached = [each / macs[-1] for each in macs]
    candidates = range(len(reached) - 1)
    places = tuple(min(candidates, key=lambda unit: abs(reached[unit] - share)) for share in shares)
    if len(set(places)) < len(places):
        rounded = [round(share, 3) for share in reached]
        raise ValueError(f"shares must be nearest to different units, got {shares}; units reach {rounded}")
    return places


def with_internal_classifiers(
    net: MultiExitNet,
    image_shape: tuple[int, int, int],
    *,
    after: Sequence[int] | None = None,
    pool: str = "mixed",
) -> MultiExitNet:
    """Return a copy of `net`, trained or not, with fresh early exits beside those it has.

    The new exits have as many outputs as the last one. `TrainConfig(trained="early_exits")` trains them alone.

    Args:
        net: any network.
        image_shape: (C, H, W) of its images; the sizes of the exits follow from it.
        after: units that get an exit; by default `exits_at_cost(net, SDN_SHARES, image_shape)`.
        pool: the heads of these exits: one of `list_pools()` for all, or one each, shallowest first, joined by "+".

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if `after` does not name units without an exit and with a feature map (C, H, W), `pool` is unknown,
            or the network cannot read images of that shape.
    """
    shapes = on_meta(net)
    if after is None:
        after = exits_at_cost(net, SDN_SHARES, image_shape)
    check_early_exits(after, len(shapes.units))
    pools = pool_of_each_exit(pool, len(after))
    features = [feature for _, feature in walk_units(shapes, image_shape)]
    last = len(features) - 1
    _, logits = count_macs(shapes.exits[str(last)], features[last], f"exit after unit {last}")
    heads = {}
    for unit, name in zip(sorted(after), pools, strict=True):
        channels, height, width = _map_shape(unit, features[unit])
        head = initialise(create_exit(name, channels, logits.shape[1], min(height, width)))
        heads[unit] = head.to(*device_and_dtype(net))
    return add_exits(net, heads)


def shallow_deep(
    builder: Callable[..., MultiExitNet],
    *,
    pool: str = "mixed",
    exit_after: Sequence[int] | None = None,
    in_channels: int = 3,
    image_size: int = 32,
    **kwargs: Any,
) -> MultiExitNet:
    """Build a CNN and put internal classifiers into it, as `with_internal_classifiers` does.

    The last exit is always the CNN's own classifier, and the backbone has the weights that `builder` draws without
    early exits.

    Args:
        builder: of the CNN.
        pool: the heads of the internal classifiers.
        exit_after: units that get one; by default those nearest to `SDN_SHARES` of the cost.
        in_channels: channels of an image.
        image_size: pixels a side.
        kwargs: other arguments of `builder`.

    Raises:
        ValueError: if an argument is not as described.
    """
    net = builder(in_channels=in_channels, image_size=image_size, **kwargs)
    return with_internal_classifiers(net, (in_channels, image_size, image_size), after=exit_after, pool=pool)


def _map_shape(unit: int, features: Features) -> tuple[int, int, int]:
    if not isinstance(features, Tensor) or features.ndim != 4:
        given = map_tensors(lambda tensor: tuple(tensor.shape[1:]), features)
        raise ValueError(
            f"output of unit {unit} must be a feature map (C, H, W), got {given}; use add_exits(net, {{unit: head}})"
        )
    return tuple(features.shape[1:])
