"""ResNet56, the narrow and deep ResNet for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

Units: 0 is the stem; 1-9, 10-18 and 19-27 are the basic blocks of the three stages. Shortcuts have no parameters, as
in the paper: where the shape changes, the map is subsampled and filled up with zeros.
"""

from collections.abc import Sequence
from typing import Any

from eeutils.models.building import assemble, check_positive
from eeutils.models.exits import average_pool_exit
from eeutils.models.layers import BasicBlock, PaddedShortcut, conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
from eeutils.models.sdn import shallow_deep

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
