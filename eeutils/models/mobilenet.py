"""MobileNet v1 for small images (Howard et al., 2017, arXiv 1704.04861).

Units: 0 is the stem, at stride 1; 1-13 are the depthwise separable blocks. Four of them halve the map, where the
ImageNet network, its stem included, does so five times.
"""

from collections.abc import Sequence
from typing import Any

from eeutils.models.exits import average_pool_exit
from eeutils.models.layers import conv_norm_act, depthwise_separable
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import assemble, check_positive, register_model
from eeutils.models.sdn import shallow_deep

# Channels, in widths, and stride of each block.
_BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))


@register_model
def mobilenet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 32,
    image_size: int = 32,
    pool: str = "mixed",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """MobileNet with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the stem; 32 is the published network, cost grows with its square.
        image_size: pixels a side that early exits are made for; the network reads any.
        pool: how each early exit pools its feature map, as `with_internal_classifiers` takes it.
        exit_after: units (0 to 12) that get an early exit.

    Raises:
        ValueError: if an argument is not as described.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    units, channels = [conv_norm_act(in_channels, width, 3)], width
    for widths, stride in _BLOCKS:
        units.append(depthwise_separable(channels, widths * width, stride))
        channels = widths * width
    head = average_pool_exit(channels, num_classes)
    image_shape = (in_channels, image_size, image_size)
    return assemble(units, head, image_shape=image_shape, exit_after=exit_after, pool=pool)


@register_model
def mobilenet_sdn(*, image_size: int = 32, **kwargs: Any) -> MultiExitNet:
    """`mobilenet` with six internal classifiers, where its cost first reaches 15, 30, ..., 90 %; arguments as there."""
    return shallow_deep(mobilenet, image_size=image_size, **kwargs)
