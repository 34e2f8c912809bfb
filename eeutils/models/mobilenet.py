"""MobileNet v1 for small images (Howard et al., 2017, arXiv 1704.04861).

Units: 0 is the stem, at stride 1; 1-13 are the depthwise separable blocks. Four of them halve the map, where the
ImageNet network, its stem included, does so five times.
"""

from collections.abc import Sequence

from torch import nn

from eeutils.models.exits import with_heads
from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
from eeutils.models.sdn import shallow_deep

# Channels, in widths, and stride of each block.
_BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))


def depthwise_separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution of each channel alone, then a 1x1 convolution across channels (figure 3 of the paper)."""
    depthwise = conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels)
    return nn.Sequential(*depthwise, *conv_norm_act(in_channels, out_channels, 1))


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
    """MobileNet with its own classifier as the only exit, unless `exit_after` (units 0 to 12) asks for more.

    Arguments as for `create_model`; `width` is that of the stem.
    """
    units, channels = [conv_norm_act(in_channels, width, 3)], width
    for widths, stride in _BLOCKS:
        units.append(depthwise_separable(channels, widths * width, stride))
        channels = widths * width
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return with_heads(units, classifier, exit_after, (in_channels, image_size, image_size), pool, num_classes)


mobilenet_sdn = shallow_deep(mobilenet)
