import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_costs
from eeutils.models import vgg16, vgg16_sdn

CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
HALVINGS_BEFORE = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
HIDDEN = {32: (512, 512), 64: (2048, 1024)}


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("num_classes", [10, 200])
def test_it_has_the_published_size_and_cost(image_size, num_classes):
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


def test_on_cifar_it_costs_what_is_told_of_it():
    with torch.device("meta"):
        net = vgg16()
    costs = measure_costs(net, (3, 32, 32))
    assert costs.cumulative_params.item() == pytest.approx(15.2e6, rel=0.01)
    assert costs.cumulative_macs.item() == pytest.approx(313.7e6, rel=0.001)


def test_pooling_ends_its_stage():
    net = vgg16(width=1)
    pooled = [unit for unit, module in enumerate(net.units) if any(isinstance(part, nn.MaxPool2d) for part in module)]
    assert pooled == [1, 3, 6, 9, 12]


def test_an_exit_is_no_larger_than_its_map():
    for unit, pixels in ((8, 4), (9, 2)):
        net = vgg16(width=2, exit_after=[unit])
        assert net.exits[str(unit)].linear.in_features == 16 * pixels**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 28}, r"unknown image_size 28; choose from \[32, 64\]"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"num_classes": -1}, "num_classes must be positive, got -1"),
        ({"in_channels": 0}, "in_channels must be positive, got 0"),
        ({"pool": "max"}, r"unknown pool 'max'; choose from \['avg', 'conv', 'mixed', 'spp'\]"),
        ({"exit_after": (3, 3)}, r"two exits after one unit in \(3, 3\)"),
        ({"exit_after": (13,)}, r"no early exits after units \[13\]: they follow units 0 to 11"),
        ({"exit_after": (-1,)}, r"no early exits after units \[-1\]"),
        ({"exit_after": (12,)}, r"\[12\]: they follow .* unit 12, the last, has the network's own classifier"),
    ],
)
def test_values_that_make_no_network_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        vgg16(**{"width": 1, **arguments})


def test_the_classifier_reads_images_of_its_size_only():
    with pytest.raises(ValueError, match=r"does not fit the network's exit after unit \d+ \(Sequential\)"):
        measure_costs(vgg16_sdn(width=2, image_size=32), (3, 64, 64))
