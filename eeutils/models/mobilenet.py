"""MobileNet v1 for small images (Howard et al., 2017, arXiv 1704.04861).

Units: 0 is the stem, at stride 1; 1-13 are the depthwise separable blocks. Four of them halve the map, where the
ImageNet network, its stem included, does so five times.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from eeutils.models.exits import average_pool_exit, with_heads
from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import check_positive, register_model
from eeutils.models.sdn import shallow_deep

# Channels, in widths, and stride of each block.
_BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))


def depthwise_separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution of each channel alone, then a 1x1 convolution across them (figure 3 of the paper)."""
    return nn.Sequential(
        *conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels),
        *conv_norm_act(in_channels, out_channels, 1),
    )


@register_model
def mobilenet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 32,
    image_size: int = 32,
    pool: str | None = None,
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """MobileNet with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the stem; 32 is the published network, cost grows with its square.
        image_size: pixels of an image's shorter side, which "mixed" heads depend on; the network reads any size.
        pool: the heads of all exits, the last included: one of `list_pools()` for all, or one each, shallowest first,
            joined by "+". By default internal classifiers before the network's own classifier.
        exit_after: units (0 to 12) that get an early exit.

    Raises:
        ValueError: if a value is not one of the above.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    units, maps, channels, size = [conv_norm_act(in_channels, width, 3)], [(width, image_size)], width, image_size
    for widths, stride in _BLOCKS:
        units.append(depthwise_separable(channels, widths * width, stride))
        channels, size = widths * width, -(-size // stride)  # rounded up
        maps.append((channels, size))
    own = average_pool_exit(channels, num_classes)
    return with_heads(units, maps, own, num_classes=num_classes, exit_after=exit_after, pool=pool)


@register_model
def mobilenet_sdn(*, pool: str = "mixed", exit_after: Sequence[int] | None = None, **kwargs: Any) -> MultiExitNet:
    """`mobilenet` as a Shallow-Deep Network, see `shallow_deep`."""
    return shallow_deep(mobilenet, pool=pool, exit_after=exit_after, **kwargs)
