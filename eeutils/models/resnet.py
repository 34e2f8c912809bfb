"""ResNet18 with one, two, three or seven exits (He et al., CVPR 2016, arXiv 1512.03385).

Units: 0 is the stem; 1-2, 3-4, 5-6 and 7-8 are the two basic blocks of layer1, layer2, layer3 and layer4. With the
CIFAR stem an image has paid 27.5 % of the network's multiply-adds after layer1, 51.7 % after layer2 and 75.8 % after
layer3.

Where the exits stand by default: after layer2 (two exits); one block into layer2 and one block into layer3 (three
exits), at 39 % and 63 % of the cost. For two the neighbours are about as good, for three no places are:
`tools/benchmarks` measures all; results/README.md has the outcome. A block into a stage an exit reads
a map that has just become smaller and twice as deep, which helps it more than another block at the old size would.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from eeutils.models.contracts import check_early_exits
from eeutils.models.exits import average_pool_exit, create_exit, pool_of_each_exit
from eeutils.models.layers import BasicBlock, PaddedShortcut, conv_norm_act, initialise
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import assemble, check_positive, register_model
from eeutils.models.sdn import exits_at_cost, plain_network, shallow_deep, with_internal_classifiers

_LAST_UNIT = 8

RESNET18_SDN_SHARES = (0.15, 0.30, 0.45, 0.60, 0.75, 0.85)
"""`SDN_SHARES` for ResNet18, but for the last: no unit before the network's own classifier reaches 90 %."""


@register_model
def resnet18(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    pool: str = "avg",
    stem: str = "cifar",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """ResNet18 with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of layer1; 64 is the published network, cost grows with its square.
        pool: the kind of head at every exit, the last included, one of `list_pools()`; or one per exit, shallowest
            first: "conv+spp+avg".
        stem: "cifar" (3x3, stride 1: small images) or "imagenet" (7x7 and max-pooling, stride 4 together).
        exit_after: units (0 to 7) that get an early exit.

    Raises:
        ValueError: if a value is not one of the above.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    check_early_exits(exit_after, _LAST_UNIT + 1)
    channels, units = [width], [_stem(stem, in_channels, width)]
    for layer in range(4):
        for block in range(2):
            out_channels, stride = width * 2**layer, 2 if layer > 0 and block == 0 else 1
            units.append(BasicBlock(channels[-1], out_channels, stride))
            channels.append(out_channels)
    places = (*sorted(exit_after), _LAST_UNIT)
    pools = pool_of_each_exit(pool, len(places))
    exits = {unit: create_exit(own, channels[unit], num_classes) for unit, own in zip(places, pools, strict=True)}
    return initialise(MultiExitNet(units, exits))


@register_model
def resnet18_2exits(*, exit_after: Sequence[int] = (4,), **kwargs) -> MultiExitNet:
    """`resnet18` with one early exit, after layer2 unless `exit_after` says otherwise."""
    return _with_early_exits(1, exit_after, kwargs)


@register_model
def resnet18_3exits(*, exit_after: Sequence[int] = (3, 5), **kwargs) -> MultiExitNet:
    """`resnet18` with two early exits, one block into layer2 and one into layer3 unless `exit_after` says otherwise."""
    return _with_early_exits(2, exit_after, kwargs)


@register_model
def resnet18_sdn(*, in_channels: int = 3, image_size: int = 32, pool: str = "mixed", **kwargs) -> MultiExitNet:
    """`resnet18` with six internal classifiers, where its cost first reaches 15, 30, 45, 60, 75 and 85 %.

    Args:
        in_channels: channels of an image.
        image_size: pixels a side; where the exits stand and how large they are follows from it.
        pool: how each early exit pools its feature map; the network's own classifier averages.
        kwargs: the other arguments of `resnet18`, without `exit_after`.

    Raises:
        ValueError: as `resnet18`, and if `exit_after` is given.
    """
    net = plain_network(resnet18, in_channels=in_channels, **kwargs)
    image_shape = (in_channels, image_size, image_size)
    after = exits_at_cost(net, RESNET18_SDN_SHARES, image_shape)
    return with_internal_classifiers(net, image_shape, after=after, pool=pool)


def _with_early_exits(count: int, exit_after: Sequence[int], kwargs: dict) -> MultiExitNet:
    check_early_exits(exit_after, _LAST_UNIT + 1)
    if len(exit_after) != count:
        raise ValueError(f"a network with {count + 1} exits has {count} early ones, got exit_after={tuple(exit_after)}")
    return resnet18(exit_after=exit_after, **kwargs)


def _stem(name: str, in_channels: int, width: int) -> nn.Module:
    if name == "cifar":
        return conv_norm_act(in_channels, width, 3)
    if name == "imagenet":
        return conv_norm_act(in_channels, width, 7, stride=2).append(nn.MaxPool2d(3, stride=2, padding=1))
    raise ValueError(f"unknown stem {name!r}; choose from ['cifar', 'imagenet']")


_STAGES, _BLOCKS = 3, 9


@register_model
def resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    image_size: int = 32,
    pool: str = "mixed",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """ResNet56 with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the first stage; 16 is the published network, cost grows with its square.
        image_size: pixels a side that early exits are made for; the network reads any.
        pool: how each early exit pools its feature map, as `with_internal_classifiers` takes it.
        exit_after: units (0 to 26) that get an early exit.

    Raises:
        ValueError: if an argument is not as described.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    units, channels = [conv_norm_act(in_channels, width, 3)], width
    for stage in range(_STAGES):
        for block in range(_BLOCKS):
            out_channels, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            shortcut = PaddedShortcut(channels, out_channels, stride) if stride > 1 else None
            units.append(BasicBlock(channels, out_channels, stride, shortcut))
            channels = out_channels
    head = average_pool_exit(channels, num_classes)
    image_shape = (in_channels, image_size, image_size)
    return assemble(units, head, image_shape=image_shape, exit_after=exit_after, pool=pool)


@register_model
def resnet56_sdn(*, image_size: int = 32, **kwargs: Any) -> MultiExitNet:
    """`resnet56` with six internal classifiers, where its cost first reaches 15, 30, ..., 90 %; arguments as there."""
    return shallow_deep(resnet56, image_size=image_size, **kwargs)
