"""VGG16 with batch normalisation for small images (Simonyan & Zisserman, ICLR 2015, arXiv 1409.1556).

Units: 0 to 12 are the convolutions; the max-pooling that ends a stage belongs to the stage's last convolution (units
1, 3, 6, 9 and 12), so that an exit there reads the smaller map. The classifier has two hidden layers of the sizes that
Shallow-Deep Networks give it for images of 32 and 64 pixels. In their code no ReLU follows the second hidden layer, and
convolutions have biases; here a ReLU follows both layers, and the norms make biases redundant.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from eeutils.fields import check_choice
from eeutils.models.exits import with_heads
from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
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
    """VGG16 with its own classifier as the only exit, unless `exit_after` (units 0 to 11) asks for more.

    Arguments as for `create_model`; `width` is that of the first stage, `image_size` 32 or 64: the classifier reads no
    other.
    """
    check_choice("image_size", image_size, list(_HIDDEN))
    units, channels = [], in_channels
    for widths, convolutions in _STAGES:
        for _ in range(convolutions):
            units.append(conv_norm_act(channels, widths * width, 3))
            channels = widths * width
        units[-1].append(nn.MaxPool2d(2))
    pixels = (image_size // 2 ** len(_STAGES)) ** 2
    sizes = [channels * pixels, *(widths * width for widths in _HIDDEN[image_size])]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    classifier = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
    return with_heads(units, classifier, exit_after, (in_channels, image_size, image_size), pool, num_classes)


vgg16_sdn = shallow_deep(vgg16)
