import pytest
import torch
from torch import Tensor, nn

from eeutils.models.memory import a_weight, channels_last


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


def test_what_was_learnt_within_is_in_the_memory_that_others_hold(net):
    held, shared = net.state_dict(), net.share_memory()
    images = torch.randn(2, 3, 9, 9)
    with channels_last(net):
        net[0].weight.data.mul_(2)
        net.mask.add_(1)
        expected = net(images)
    assert torch.equal(net(images), expected)
    assert net is shared
    assert all(tensor.is_shared() for tensor in (*net.parameters(), *net.buffers()))
    assert all(tensor.data_ptr() == held[name].data_ptr() for name, tensor in net.state_dict().items())
    assert (held["mask"] == 2).all()


def trained(net: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights after two steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
    return [weight.detach().clone() for weight in net.parameters()]


def on_one_storage() -> nn.Sequential:
    """Two parameters that are one tensor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3))
    net[2].weight = nn.Parameter(net[0].weight.data)
    return net


def on_parts_of_one_storage() -> nn.Sequential:
    """Two parameters that overlap, as in a buffer into which all are packed."""
    torch.manual_seed(0)
    net, packed = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3)), torch.randn(100) / 5
    net[0].weight.data, net[2].weight.data = packed[:81].view(3, 3, 3, 3), packed[19:].view(3, 3, 3, 3)
    return net


@pytest.mark.parametrize("build", [on_one_storage, on_parts_of_one_storage])
def test_parameters_that_share_memory_share_it_while_they_are_trained_and_afterwards(build):
    net, other, images = build(), build(), torch.randn(2, 3, 9, 9)
    places = [weight.data_ptr() for weight in net.parameters()]
    with channels_last(net):
        within = trained(net, images)
    assert [weight.data_ptr() for weight in net.parameters()] == places
    for here, there, expected in zip(net.parameters(), within, trained(other, images), strict=True):
        assert torch.equal(here, there)
        torch.testing.assert_close(there, expected)


def test_a_tensor_that_repeats_its_numbers_is_left_alone():
    net = nn.Conv2d(3, 4, 3)
    net.register_buffer("mask", torch.ones(1, 3, 1, 1).expand(2, 3, 4, 5))
    with channels_last(net):
        assert net.mask.stride() == (0, 1, 0, 0)
    assert net.mask.untyped_storage().nbytes() == 3 * 4


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


def test_a_weight_tells_what_a_network_computes_in():
    counted = nn.Module()
    counted.register_buffer("count", torch.tensor(0))
    counted.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
    assert a_weight(counted) is counted.mean
    assert a_weight(nn.Conv2d(3, 4, 3).bfloat16()).dtype == torch.bfloat16
    nothing = a_weight(nn.ReLU())
    assert (nothing.dtype, nothing.device.type) == (torch.float32, "cpu")
