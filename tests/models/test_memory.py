import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm

from eeutils.models.memory import (
    channels_last,
    check_weights,
    device_and_dtype,
    independent_copy,
    make_weights_permanent,
    named_weights,
)


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


@pytest.mark.parametrize("error", [None, KeyError])
def test_channels_last_restores_the_layout(net, error):
    before, weight = in_channels_last(net), net[0].weight
    assert set(before.values()) == {True, False}
    try:
        with channels_last(net):
            assert all(in_channels_last(net).values())
            if error:
                raise error
    except KeyError:
        pass
    assert in_channels_last(net) == before
    assert net[0].weight is weight  # an optimizer may hold it


def trained(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the weights after two steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
    return [weight.detach().clone() for weight in net.parameters()]


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3))
    net[2].weight = net[0].weight
    return net


def test_channels_last_keeps_what_was_learnt_and_ties():
    net, images = tied(), torch.randn(2, 3, 9, 9)
    with channels_last(net):
        within = trained(net, images)
    assert net[2].weight is net[0].weight
    for here, there, expected in zip(net.parameters(), within, trained(tied(), images), strict=True):
        assert torch.equal(here, there)
        torch.testing.assert_close(there, expected)


def test_channels_last_leaves_tensors_of_other_than_four_dimensions():
    net = nn.Conv3d(3, 4, 3)
    with channels_last(net):
        assert net.weight.is_contiguous()


def test_device_and_dtype_are_those_of_the_first_float():
    counted = nn.Module()
    counted.register_buffer("count", torch.tensor(0))
    counted.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
    assert device_and_dtype(counted) == (torch.device("cpu"), torch.float64)
    assert device_and_dtype(nn.Conv2d(3, 4, 3, device="meta"))[0] == torch.device("meta")
    assert device_and_dtype(nn.ReLU()) == (torch.device("cpu"), torch.float32)


def pruned(net: nn.Module) -> nn.Module:
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def normed(net: nn.Module) -> nn.Module:
    weight_norm(net[0])
    return net


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [pruned, normed])
def test_copies_of_computed_weights_answer_alike_and_become_permanent(change):
    net, images = change(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), torch.randn(2, 3, 9, 9)
    copy = independent_copy(net)
    assert torch.equal(copy(images), net(images))
    make_weights_permanent(copy)
    torch.testing.assert_close(copy(images), net(images))
    assert sorted(name for name, _ in copy.named_parameters()) == ["0.bias", "0.weight"]
    assert len(net[0]._forward_pre_hooks) == 1


def test_named_weights_are_parameters_and_running_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    kept = dict(named_weights(net))
    assert net.state_dict().keys() - kept.keys() == {"mask", "1.num_batches_tracked"}
    check_weights(net)
    net[1].running_var[0] = torch.nan
    with pytest.raises(ValueError, match=r"1\.running_var"):
        check_weights(net)


def test_named_weights_have_all_names_of_tied_ones():
    norm = nn.BatchNorm2d(4)
    names = {name for name, _ in named_weights(nn.Sequential(norm, norm))}
    assert names == {f"{at}.{what}" for at in (0, 1) for what in ("weight", "bias", "running_mean", "running_var")}
