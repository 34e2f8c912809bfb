import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_costs
from eeutils.models import mobilenet
from eeutils.models.mobilenet import depthwise_separable

# Input channels, output channels, halvings of the image up to and including the block.
BLOCKS = (
    (32, 64, 0),
    (64, 128, 1),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 2),
    (256, 512, 3),
    *((512, 512, 3),) * 5,
    (512, 1024, 4),
    (1024, 1024, 4),
)


@pytest.mark.parametrize("image_size", [32, 64])
def test_mobilenet_has_the_published_size_and_cost(image_size):
    with torch.device("meta"):
        net = mobilenet()
    costs = measure_costs(net, (3, image_size, image_size))
    params, macs = [9 * 3 * 32 + 2 * 32], [9 * 3 * 32 * image_size**2]
    for inputs, outputs, halvings in BLOCKS:
        kernels = 9 * inputs + inputs * outputs
        params.append(kernels + 2 * inputs + 2 * outputs)
        macs.append(kernels * (image_size // 2**halvings) ** 2)
    assert costs.unit_params.tolist() == params
    assert costs.unit_macs.tolist() == macs
    assert costs.exit_params.tolist() == [1024 * 10 + 10]
    assert costs.cumulative_params.item() == pytest.approx(3.2e6, rel=0.01)


def test_depthwise_separable_is_a_depthwise_and_a_pointwise_convolution():
    block, x = depthwise_separable(3, 5, stride=2).eval(), torch.randn(2, 3, 8, 8)
    depthwise = nn.functional.conv2d(x, block[0].weight, stride=2, padding=1, groups=3)
    pointwise = nn.functional.conv2d(block[1](depthwise).relu(), block[3].weight)
    torch.testing.assert_close(block(x), block[4](pointwise).relu())
