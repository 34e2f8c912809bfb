import pytest
import torch
from torch import nn

from eeutils import MultiExitNet
from eeutils.weights import put_tensors
from eeutils.weights.tensors import stored_tensors


def make_net() -> MultiExitNet:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = MultiExitNet([nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))], {0: head})
    net.register_buffer("mask", torch.zeros(2))
    return net


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager")])
@pytest.mark.parametrize("name", ["exits.0.2.bias", "units.0.1.running_var"])
def test_put_tensors_refuses_an_infinite_weight_or_statistic_but_takes_a_mask(name, wrap):
    net = make_net()
    put_tensors(net, stored_tensors(net) | {"mask": torch.full((2,), -torch.inf)}, "a file")
    assert net.mask.tolist() == [-torch.inf] * 2
    broken = stored_tensors(net) | {name: torch.full_like(net.state_dict()[name], torch.inf)}
    with pytest.raises(ValueError, match=f"NaN or infinite: {name}$"):
        put_tensors(wrap(net), broken, "a file")
    assert net.state_dict()[name].isfinite().all()


def test_put_tensors_names_a_broken_tied_weight():
    """`parameters()` knows it by one name only, and the file by two."""
    unit = nn.Conv2d(3, 3, 1)
    net = MultiExitNet([unit, unit], {1: nn.Flatten()})
    with pytest.raises(ValueError, match=r"NaN or infinite: units\.1\.bias$"):
        put_tensors(net, stored_tensors(net) | {"units.1.bias": torch.full((3,), torch.nan)}, "a file")


def test_put_tensors_passes_between_compiled_and_plain_networks():
    plain, compiled = make_net(), torch.compile(make_net(), backend="eager")
    put_tensors(plain, compiled.state_dict(), "a file")
    assert torch.equal(plain.units[0][0].weight, compiled.units[0][0].weight)
    with torch.no_grad():
        plain.units[0][0].weight.zero_()
    put_tensors(compiled, plain.state_dict(), "a file")
    assert not compiled.units[0][0].weight.any()


def test_put_tensors_names_all_that_does_not_fit():
    net = make_net()
    tensors = stored_tensors(net) | {"exits.0.2.bias": torch.ones(3, dtype=torch.int8), "stranger": torch.ones(1)}
    tensors["units.0.0.bias"] = torch.ones(7)
    del tensors["units.0.1.bias"]
    with pytest.raises(ValueError, match="a file") as caught:
        put_tensors(net, tensors, "a file")
    for named in ("exits.0.2.bias torch.int8", "stranger", "units.0.0.bias (7,) instead of (4,)", "units.0.1.bias"):
        assert named in str(caught.value)


def test_stored_tensors_share_no_memory():
    head = nn.Linear(2, 2)
    net = MultiExitNet([nn.Identity(), nn.Identity()], {0: head, 1: head}).to(memory_format=torch.channels_last)
    tensors = stored_tensors(net)
    assert tensors.keys() == net.state_dict().keys()
    assert len({tensor.data_ptr() for tensor in (*tensors.values(), head.weight, head.bias)}) == 6
