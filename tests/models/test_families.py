"""Sizes and costs of the networks as published, layer by layer, and what is particular to each."""

import pytest
import torch
from torch import nn

from eeutils import create_model
from eeutils.analysis import NetworkCosts, measure_costs
from eeutils.models import vgg16, wideresnet32_4
from eeutils.models.wideresnet import PreActivationBlock

both_sizes = pytest.mark.parametrize("image_size", [32, 64])


def costs_of(name: str, image_size: int, **kwargs: int) -> NetworkCosts:
    with torch.device("meta"):
        net = create_model(name, image_size=image_size, **kwargs)
    return measure_costs(net, (3, image_size, image_size))


def assert_units(costs: NetworkCosts, units: list[tuple[int, int, int]]) -> None:
    """`units` are the weights of a unit's kernels, the parameters of its norms, and the side of the map they run on."""
    assert costs.unit_params.tolist() == [kernels + norms for kernels, norms, _ in units]
    assert costs.unit_macs.tolist() == [kernels * side**2 for kernels, _, side in units]


@both_sizes
def test_vgg16_has_the_published_size_and_cost(image_size):
    costs = costs_of("vgg16", image_size, num_classes=200)
    channels = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    halvings_before = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
    kernels = [9 * inputs * outputs for inputs, outputs in zip((3, *channels[:-1]), channels, strict=True)]
    sides = [image_size // 2**halvings for halvings in halvings_before]
    assert_units(costs, list(zip(kernels, [2 * each for each in channels], sides, strict=True)))
    first, second = {32: (512, 512), 64: (2048, 1024)}[image_size]
    linear = 512 * (image_size // 32) ** 2 * first + first * second + second * 200
    assert costs.exit_macs.tolist() == [linear]
    assert costs.cumulative_params.item() == sum(kernels) + 2 * sum(channels) + linear + first + second + 200


def test_vgg16_names_an_image_size_that_it_does_not_read():
    with pytest.raises(ValueError, match="28"):
        vgg16(width=1, image_size=28)
    with pytest.raises(ValueError, match=r"exit after unit 12"):
        measure_costs(vgg16(width=2, image_size=32), (3, 64, 64))


@both_sizes
def test_mobilenet_has_the_published_size_and_cost(image_size):
    costs = costs_of("mobilenet", image_size)
    # Input channels, output channels, halvings of the image up to and including the block.
    blocks = [(32, 64, 0), (64, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 2), (256, 512, 3)]
    blocks += [*((512, 512, 3),) * 5, (512, 1024, 4), (1024, 1024, 4)]
    units = [(9 * 3 * 32, 2 * 32, image_size)]
    for inputs, outputs, halvings in blocks:
        units.append((9 * inputs + inputs * outputs, 2 * inputs + 2 * outputs, image_size // 2**halvings))
    assert_units(costs, units)
    assert costs.exit_params.tolist() == [1024 * 10 + 10]
    assert costs.cumulative_params.item() == pytest.approx(3.2e6, rel=0.01)


@both_sizes
def test_resnet56_has_the_published_size_and_cost(image_size):
    costs = costs_of("resnet56", image_size)
    # Two 3x3 convolutions a block; the first of a stage reads the maps of the stage before, at half their size.
    units = [(9 * 3 * 16, 2 * 16, image_size)]
    for channels, before, size in ((16, 16, image_size), (32, 16, image_size // 2), (64, 32, image_size // 4)):
        for inputs in (before, *[channels] * 8):
            units.append((9 * inputs * channels + 9 * channels**2, 4 * channels, size))
    assert_units(costs, units)
    assert costs.exit_params.tolist() == [64 * 10 + 10]
    if image_size == 32:
        assert costs.cumulative_params.item() == pytest.approx(0.85e6, rel=0.005)
        assert costs.cumulative_macs.item() == pytest.approx(125.5e6, rel=0.001)


@both_sizes
def test_wideresnet_has_the_published_size_and_cost(image_size):
    costs = costs_of("wideresnet32_4", image_size)
    units = [(9 * 3 * 16, 0, image_size)]
    for channels, before, size in ((64, 16, image_size), (128, 64, image_size // 2), (256, 128, image_size // 4)):
        for inputs in (before, *[channels] * 4):
            projection = 0 if inputs == channels else inputs * channels
            units.append((9 * inputs * channels + 9 * channels**2 + projection, 2 * inputs + 2 * channels, size))
    assert_units(costs, units)
    assert costs.exit_params.tolist() == [2 * 256 + 256 * 10 + 10]
    assert costs.cumulative_params.item() == pytest.approx(7.4e6, rel=0.01)


def test_wideresnet_takes_a_dropout():
    for net, share in ((wideresnet32_4(width=1), 0.3), (wideresnet32_4(width=1, dropout=0.1), 0.1)):
        assert {module.p for module in net.modules() if isinstance(module, nn.Dropout)} == {share}


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (4, 2)])
def test_pre_activation_block_is_its_residual_on_an_uninterrupted_shortcut(out_channels, stride):
    block, x = PreActivationBlock(4, out_channels, stride).eval(), torch.randn(2, 4, 7, 7)
    before = x.clone()
    nn.init.zeros_(block.residual[-1].weight)
    shortcut = x if (out_channels, stride) == (4, 1) else block.projection(block.activation(x))
    assert torch.equal(block(x), shortcut)
    assert torch.equal(x, before)
