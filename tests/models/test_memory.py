import pytest
import torch
from torch import nn

from eeutils.models.memory import channels_last, check_weights, named_weights


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


def test_named_weights_are_parameters_and_running_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    kept = dict(named_weights(net))
    assert net.state_dict().keys() - kept.keys() == {"mask", "1.num_batches_tracked"}
    check_weights(net)
    net[1].running_var[0] = torch.nan
    with pytest.raises(ValueError, match=r"1\.running_var"):
        check_weights(net)
    names = {name for name, _ in named_weights(nn.Sequential(net[1], net[1]))}  # tied ones have all their names
    assert names == {f"{at}.{what}" for at in (0, 1) for what in ("weight", "bias", "running_mean", "running_var")}
