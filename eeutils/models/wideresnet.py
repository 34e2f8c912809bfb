"""WideResNet32-4 (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

Units: 0 is the stem; 1-5, 6-10 and 11-15 are the pre-activation blocks of the three stages. The norm and ReLU after the
last block belong to the network's own classifier; early exits read the maps as the blocks hand them on.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from eeutils.models.exits import average_pool_exit
from eeutils.models.layers import PreActivationBlock
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import assemble, check_positive, register_model
from eeutils.models.sdn import shallow_deep

_STAGES, _BLOCKS, _WIDEN = 3, 5, 4


@register_model
def wideresnet32_4(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    image_size: int = 32,
    dropout: float = 0.3,
    pool: str = "mixed",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """WideResNet32-4 with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the stem, the stages have 4, 8 and 16 times as many; 16 is the published network, cost
            grows with its square.
        image_size: pixels a side that early exits are made for; the network reads any.
        dropout: share of activations dropped between the two convolutions of a block.
        pool: how each early exit pools its feature map, as `with_internal_classifiers` takes it.
        exit_after: units (0 to 14) that get an early exit.

    Raises:
        ValueError: if an argument is not as described.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    units, channels = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)], width
    for stage in range(_STAGES):
        for block in range(_BLOCKS):
            out_channels, stride = _WIDEN * width * 2**stage, 2 if stage > 0 and block == 0 else 1
            units.append(PreActivationBlock(channels, out_channels, stride, dropout))
            channels = out_channels
    head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *average_pool_exit(channels, num_classes))
    image_shape = (in_channels, image_size, image_size)
    return assemble(units, head, image_shape=image_shape, exit_after=exit_after, pool=pool)


@register_model
def wideresnet32_4_sdn(*, image_size: int = 32, **kwargs: Any) -> MultiExitNet:
    """`wideresnet32_4` with six internal classifiers, where its cost first reaches 15, 30, ..., 90 %."""
    return shallow_deep(wideresnet32_4, image_size=image_size, **kwargs)
