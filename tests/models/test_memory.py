import pytest
import torch
from torch import nn

from eeutils.models.memory import channels_last


@pytest.fixture
def net() -> nn.Module:
    """A parameter and a buffer in each memory format."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last))
    net.register_buffer("mask", torch.ones(2, 3, 4, 5))
    net[1].register_buffer("mask", torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    return net


def in_channels_last(net: nn.Module) -> dict[str, bool]:
    return {
        name: tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        for name, tensor in net.state_dict().items()
        if tensor.ndim == 4
    }


def test_every_tensor_lies_afterwards_as_it_lay(net):
    before = in_channels_last(net)
    assert set(before.values()) == {True, False}
    weight = net[0].weight
    with channels_last(net):
        assert all(in_channels_last(net).values())
    assert in_channels_last(net) == before
    assert net[0].weight is weight  # an optimiser may know it


def test_tensors_of_other_than_four_dimensions_stay_as_they_lie():
    net = nn.Conv3d(3, 4, 3)
    net.register_parameter("position", nn.Parameter(torch.zeros(1, 3, 1, 1, 1, 2)))
    with channels_last(net):
        assert all(tensor.is_contiguous() for tensor in net.parameters())


def test_also_after_an_error(net):
    before = in_channels_last(net)
    with pytest.raises(KeyError), channels_last(net):
        raise KeyError
    assert in_channels_last(net) == before
