import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_costs
from eeutils.models import vgg16

CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
HALVINGS_BEFORE = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
HIDDEN = {32: (512, 512), 64: (2048, 1024)}


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("num_classes", [10, 200])
def test_vgg16_has_the_published_size_and_cost(image_size, num_classes):
    with torch.device("meta"):
        net = vgg16(image_size=image_size, num_classes=num_classes)
    costs = measure_costs(net, (3, image_size, image_size))
    convolutions = [9 * inputs * outputs for inputs, outputs in zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)]
    sizes = [image_size // 2**halvings for halvings in HALVINGS_BEFORE]
    assert costs.unit_macs.tolist() == [kernel * size**2 for kernel, size in zip(convolutions, sizes, strict=True)]
    flat = 512 * (image_size // 32) ** 2
    first, second = HIDDEN[image_size]
    linear = flat * first + first * second + second * num_classes
    assert costs.exit_macs.tolist() == [linear]
    biases = first + second + num_classes
    assert costs.cumulative_params.item() == sum(convolutions) + 2 * sum(CHANNELS) + linear + biases


def test_vgg16_pooling_ends_its_stage():
    net = vgg16(width=1)
    pooled = [unit for unit, module in enumerate(net.units) if any(isinstance(part, nn.MaxPool2d) for part in module)]
    assert pooled == [1, 3, 6, 9, 12]


def test_vgg16_names_an_image_size_that_it_does_not_read():
    with pytest.raises(ValueError, match="28"):
        vgg16(width=1, image_size=28)
    with pytest.raises(ValueError, match=r"exit after unit 12"):
        measure_costs(vgg16(width=2, image_size=32), (3, 64, 64))
