import pytest
import torch
from torch import nn

from eeutils.engines.torch_engine import PackedConv2d, _can_be_packed, with_packed_convolutions
from eeutils.models import MultiExitNet, create_exit


def net_of(conv: nn.Conv2d) -> MultiExitNet:
    return MultiExitNet([conv], {0: create_exit("avg", conv.out_channels, 3)}).eval()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2},
        {"groups": 4},
        {"groups": 2, "bias": False},
        {"padding": (0, 2)},
    ],
)
@pytest.mark.parametrize("count", [1, 5])
def test_packed_convolutions_answer_the_same(kwargs, count):
    net = net_of(nn.Conv2d(4, 8, 3, **kwargs))
    images = torch.randn(count, 4, 9, 7).to(memory_format=torch.channels_last)
    packed = with_packed_convolutions(net)
    assert type(packed.units[0]) is PackedConv2d
    with torch.inference_mode():
        torch.testing.assert_close(packed(images)[0], net(images)[0])
    assert type(net.units[0]) is nn.Conv2d


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular").double()]
)
def test_packed_convolutions_are_no_other_kinds(conv):
    assert type(with_packed_convolutions(net_of(conv)).units[0]) is nn.Conv2d


def test_packed_convolutions_keep_what_networks_read():
    conv = nn.Conv2d(4, 8, 3, stride=2)
    packed = with_packed_convolutions(net_of(conv)).units[0]
    assert torch.equal(packed.weight, conv.weight)
    assert (packed.out_channels, packed.stride) == (8, (2, 2))


@pytest.mark.parametrize(
    ("channels", "packed"), [((3, 32), True), ((32, 64), True), ((96, 96), False), ((64, 48), False)]
)
def test_can_be_packed_is_true_where_channels_are_powers_of_two(channels, packed):
    """Elsewhere oneDNN may fall into a slow kernel for one image."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is not there")
    assert _can_be_packed(nn.Conv2d(*channels, 3)) == packed
