from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from eeutils.analysis import measure_costs
from eeutils.models import airnet, airnet_3exits, whiten
from eeutils.models.airnet import Whitening


@pytest.mark.parametrize("width", [32, 64])
def test_airnet_costs_what_its_structure_says(width):
    with torch.device("meta"):
        net = airnet_3exits(width=width, pool="avg")
    costs = measure_costs(net, (3, 32, 32))
    wide = 4 * width
    layers = [(24, width, 31), (width, width, 15), (width, wide, 15), (wide, wide, 7), (wide, wide, 7), (wide, wide, 3)]
    assert costs.unit_macs.tolist() == [31**2 * 12 * 24, *[size**2 * 9 * few * many for few, many, size in layers]]
    assert costs.unit_params.tolist()[1:] == [9 * few * many + 2 * many for few, many, _ in layers]
    assert costs.exit_after == (2, 4, 6)
    if width == 64:
        macs = costs.cumulative_macs
        assert macs[-1].item() == pytest.approx(118e6, rel=0.01)
        assert (macs / macs[-1]).tolist() == pytest.approx([0.185, 0.711, 1], abs=0.001)


def test_airnet_layers_start_as_the_identity():
    x = torch.randn(2, 16, 8, 8)
    layer = airnet(width=4).units[4]
    torch.testing.assert_close(layer[0](x), x)


def correlated_images() -> torch.Tensor:
    return F.avg_pool2d(torch.randn(64, 3, 12, 12), 3, 1) @ torch.diag(torch.arange(1.0, 11))


def test_whitening_makes_pixels_uncorrelated():
    layer, images = Whitening(3), correlated_images()
    layer.whiten(images)
    features = layer(images).detach().transpose(0, 1).flatten(1)  # (24, patches)
    torch.testing.assert_close(features[:12], -features[12:])
    torch.testing.assert_close(features[:12] @ features[:12].T / features.shape[1], torch.eye(12), atol=0.1, rtol=0)


def test_whiten_sets_filters_once_and_they_are_not_trained():
    net = airnet(width=2)
    before = deepcopy(net.units[0][0].weight)
    whiten(net, correlated_images())
    whitened = deepcopy(net.state_dict())
    assert not torch.equal(net.units[0][0].weight, before)
    assert not net.units[0][0].weight.requires_grad
    loaded = airnet(width=2)
    loaded.load_state_dict(whitened)
    whiten(loaded, 9 * correlated_images())
    assert all(torch.equal(tensor, whitened[name]) for name, tensor in loaded.state_dict().items())
