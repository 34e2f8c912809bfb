import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_costs
from eeutils.models import wideresnet32_4
from eeutils.models.wideresnet import PreActivationBlock


@pytest.mark.parametrize("image_size", [32, 64])
def test_wideresnet_has_the_published_size_and_cost(image_size):
    with torch.device("meta"):
        net = wideresnet32_4()
    costs = measure_costs(net, (3, image_size, image_size))
    params, macs = [9 * 3 * 16], [9 * 3 * 16 * image_size**2]
    for channels, before, size in ((64, 16, image_size), (128, 64, image_size // 2), (256, 128, image_size // 4)):
        for inputs in (before, *[channels] * 4):
            projection = 0 if inputs == channels else inputs * channels
            kernels = 9 * inputs * channels + 9 * channels**2 + projection
            params.append(kernels + 2 * inputs + 2 * channels)
            macs.append(kernels * size**2)
    assert costs.unit_params.tolist() == params
    assert costs.unit_macs.tolist() == macs
    assert costs.exit_params.tolist() == [2 * 256 + 256 * 10 + 10]
    assert costs.cumulative_params.item() == pytest.approx(7.4e6, rel=0.01)


def test_wideresnet_has_32_weighted_layers_besides_the_projections():
    layers = [module for module in wideresnet32_4(width=1).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    projections = [module for module in layers if getattr(module, "kernel_size", None) == (1, 1)]
    assert (len(layers) - len(projections), len(projections)) == (32, 3)


def test_wideresnet_takes_a_dropout():
    def shares(net: nn.Module) -> set[float]:
        return {module.p for module in net.modules() if isinstance(module, nn.Dropout)}

    assert shares(wideresnet32_4(width=1)) == {0.3}
    assert shares(wideresnet32_4(width=1, dropout=0.1)) == {0.1}


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_pre_activation_block_is_its_residual_on_an_uninterrupted_shortcut(out_channels, stride):
    block, x = PreActivationBlock(4, out_channels, stride).eval(), torch.randn(2, 4, 7, 7)
    before = x.clone()
    nn.init.zeros_(block.residual[-1].weight)
    shortcut = x if (out_channels, stride) == (4, 1) else block.projection(block.activation(x))
    assert torch.equal(block(x), shortcut)
    assert torch.equal(x, before)
