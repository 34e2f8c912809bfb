import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_costs
from eeutils.models import resnet56
from eeutils.models.layers import BasicBlock, PaddedShortcut


@pytest.mark.parametrize("image_size", [32, 64])
def test_it_has_the_published_size_and_cost(image_size):
    with torch.device("meta"):
        net = resnet56()
    costs = measure_costs(net, (3, image_size, image_size))
    # Two 3x3 convolutions a block; the first of a stage reads what the stage before has, at half its size.
    params, macs = [9 * 3 * 16 + 2 * 16], [9 * 3 * 16 * image_size**2]
    for channels, before, size in ((16, 16, image_size), (32, 16, image_size // 2), (64, 32, image_size // 4)):
        for inputs in (before, *[channels] * 8):
            kernels = 9 * inputs * channels + 9 * channels**2
            params.append(kernels + 4 * channels)
            macs.append(kernels * size**2)
    assert costs.unit_params.tolist() == params
    assert costs.unit_macs.tolist() == macs
    assert costs.exit_params.tolist() == [64 * 10 + 10]


def test_on_cifar_it_costs_what_the_paper_says():
    with torch.device("meta"):
        net = resnet56()
    costs = measure_costs(net, (3, 32, 32))
    assert costs.cumulative_params.item() == pytest.approx(0.85e6, rel=0.005)
    assert costs.cumulative_macs.item() == pytest.approx(125.5e6, rel=0.001)


def test_it_has_56_weighted_layers():
    layers = [module for module in resnet56(width=1).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 56


@pytest.mark.parametrize("size", [5, 8])
def test_a_padded_shortcut_takes_every_other_pixel_and_adds_zeros(size):
    x = torch.randn(2, 3, size, size)
    y = PaddedShortcut(3, 6, 2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y.shape[1] == 6
    assert not y[:, 3:].any()
    assert BasicBlock(3, 6, 2, PaddedShortcut(3, 6, 2))(x).shape == y.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be positive, got 0"),
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"exit_after": (28,)}, r"\[28\]: they follow units 0 to 26"),
        ({"exit_after": (27,)}, r"\[27\]: they follow .* unit 27, the last, has the network's own classifier"),
        ({"exit_after": (1, 2, 1)}, r"two exits after one unit in \(1, 2, 1\)"),
    ],
)
def test_values_that_make_no_network_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet56(**{"width": 1, **arguments})
