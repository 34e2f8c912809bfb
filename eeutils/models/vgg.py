"""VGG16 with batch normalisation for small images (Simonyan & Zisserman, ICLR 2015, arXiv 1409.1556).

Units: 0 to 12 are the convolutions; the max-pooling that ends a stage belongs to the stage's last convolution (units
1, 3, 6, 9 and 12), so that an exit there reads the smaller map. The classifier has two hidden layers of the sizes that
Shallow-Deep Networks give it for images of 32 and 64 pixels. In their code no ReLU follows the second hidden layer, and
convolutions have biases; here a ReLU follows both layers, and the norms make biases redundant.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from eeutils.models.exits import with_heads
from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import check_positive, register_model
from eeutils.models.sdn import shallow_deep

# Channels, in widths, and convolutions of each stage.
_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
# Sizes of the hidden layers, in widths, by image size.
_HIDDEN = {32: (8, 8), 64: (32, 16)}


@register_model
def vgg16(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 32,
    pool: str | None = None,
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """VGG16 with batch normalisation; its own classifier is the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the first convolution; 64 is the published network, cost grows with its square.
        image_size: pixels a side, 32 or 64; the classifier reads images of this size only.
        pool: the heads of all exits, the last included: one of `list_pools()` for all, or one each, shallowest first,
            joined by "+". By default internal classifiers before the network's own classifier.
        exit_after: units (0 to 11) that get an early exit.

    Raises:
        ValueError: if a value is not one of the above.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if image_size not in _HIDDEN:
        raise ValueError(f"image_size must be one of {list(_HIDDEN)}, got {image_size}")
    units, maps, channels, size = [], [], in_channels, image_size
    for widths, convolutions in _STAGES:
        for number in range(1, convolutions + 1):
            units.append(conv_norm_act(channels, widths * width, 3))
            if number == convolutions:
                units[-1].append(nn.MaxPool2d(2))
                size //= 2
            channels = widths * width
            maps.append((channels, size))
    own = _classifier([channels * size**2, *(widths * width for widths in _HIDDEN[image_size]), num_classes])
    return with_heads(units, maps, own, num_classes=num_classes, exit_after=exit_after, pool=pool)


@register_model
def vgg16_sdn(*, pool: str = "mixed", exit_after: Sequence[int] | None = None, **kwargs: Any) -> MultiExitNet:
    """`vgg16` as a Shallow-Deep Network, see `shallow_deep`."""
    return shallow_deep(vgg16, pool=pool, exit_after=exit_after, **kwargs)


def _classifier(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from each size to the next; all but the last with a ReLU and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
