"""VGG16 with batch normalisation for small images (Simonyan & Zisserman, ICLR 2015, arXiv 1409.1556).

Units: 0 to 12 are the convolutions; the max-pooling that ends a stage belongs to the stage's last convolution (units
1, 3, 6, 9 and 12), so that an exit there reads the smaller map. The classifier has two hidden layers, of the sizes
that Shallow-Deep Networks give it for 32x32 and for 64x64 images.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import assemble, check_positive, register_model
from eeutils.models.sdn import shallow_deep

# Channels, in widths, and convolutions of each stage.
_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
# Sizes of the hidden layers, in widths, by the images' size.
_HIDDEN = {32: (8, 8), 64: (32, 16)}


@register_model
def vgg16(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 32,
    pool: str = "mixed",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """VGG16 with batch normalisation; its own classifier is the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the first convolution; 64 is the published network, cost grows with its square.
        image_size: pixels a side, 32 or 64: the classifier reads images of this size only.
        pool: how each early exit pools its feature map, as `with_internal_classifiers` takes it.
        exit_after: units (0 to 11) that get an early exit.

    Raises:
        ValueError: if an argument is not as described.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if image_size not in _HIDDEN:
        raise ValueError(f"unknown image_size {image_size}; choose from {list(_HIDDEN)}")
    units, channels = [], in_channels
    for widths, convolutions in _STAGES:
        for _ in range(convolutions):
            units.append(conv_norm_act(channels, widths * width, 3))
            channels = widths * width
        units[-1].append(nn.MaxPool2d(2))
    pixels = image_size // 2 ** len(_STAGES)
    hidden = [widths * width for widths in _HIDDEN[image_size]]
    head = _classifier([channels * pixels**2, *hidden, num_classes])
    image_shape = (in_channels, image_size, image_size)
    return assemble(units, head, image_shape=image_shape, exit_after=exit_after, pool=pool)


@register_model
def vgg16_sdn(*, image_size: int = 32, **kwargs: Any) -> MultiExitNet:
    """`vgg16` with six internal classifiers, where its cost first reaches 15, 30, ..., 90 %; arguments as there."""
    return shallow_deep(vgg16, image_size=image_size, **kwargs)


def _classifier(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from each size to the next; all but the last with a ReLU and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
