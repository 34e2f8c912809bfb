from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.models import create_exit
from eeutils.training import fit
from eeutils.training.muon import Muon, orthogonal
from eeutils.training.optimizer import create_optimizer

CPU = torch.device("cpu")


def group(*parameters: nn.Parameter, is_orthogonal: bool = True) -> dict:
    return {"params": list(parameters), "orthogonal": is_orthogonal}


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_keeps_directions_and_brings_singular_values_near_one(shape, dtype):
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left * values.clamp_min(values.max() / 10) @ right

    answer = orthogonal(matrix.to(dtype)).float()

    gains = (left.T @ answer @ right.T).diagonal()
    assert gains.min() > 0.5
    assert gains.max() < 1.3
    torch.testing.assert_close(left * gains @ right, answer, atol=0.05, rtol=0)


def test_muon_steps_by_hand():
    """Two steps in one direction: an orthogonal gradient stays as it is but for a gain, which is that of one number."""
    filters = nn.Parameter(torch.eye(4).reshape(4, 4, 1, 1) * 3)
    optimizer = Muon([group(filters)], learning_rate=0.1, momentum=0.5, nesterov=True, in_bf16=False)
    gain = orthogonal(torch.eye(4))[0, 0]
    for size in (1.0, 7.0):  # of the gradient, which makes no difference
        filters.grad = size * torch.eye(4).reshape(4, 4, 1, 1)
        optimizer.step()
        torch.testing.assert_close(filters.detach().flatten(1), (1 - 0.1 * gain) * torch.eye(4))
        assert filters.grad is None
    assert optimizer.state[filters]["momentum_buffer"][0, 0] == 0.5 * 1 + 7


def test_muon_trains_other_groups_as_sgd_does():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    muon = Muon([group(*one.parameters(), is_orthogonal=False)], 0.1, 0.9, nesterov=True, in_bf16=False)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        for own, theirs in zip(one.parameters(), other.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            theirs.grad = own.grad.clone()
        muon.step()
        sgd.step()
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_muon_gets_the_filters_past_the_stem(tiny_net, tiny_config):
    net = tiny_net(pool="conv+spp+spp")
    config = tiny_config(optimizer="muon", learning_rate=0.2, filter_learning_rate=0.05, bias_learning_rate=8.0)

    first, *others = create_optimizer(net, config, CPU).param_groups

    wanted = {id(each) for name, each in net.named_parameters() if each.ndim == 4 and not name.startswith("units.0.")}
    assert {id(each) for each in first["params"]} == wanted
    assert (first["lr_factor"], first["orthogonal"]) == (0.25, True)
    assert [each["lr_factor"] for each in others] == [1.0, 1.0, 8.0]
    assert not any(each["orthogonal"] for each in others)
    assert sum(len(each["params"]) for each in (first, *others)) == len(list(net.parameters()))


def test_muon_trains_heads_without_a_filter(tiny_config):
    groups = create_optimizer(
        nn.ModuleList([create_exit("avg", 4, 4)]), tiny_config(optimizer="muon"), CPU
    ).param_groups
    assert not any(each["orthogonal"] for each in groups)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_learns_and_resumes_exactly(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch, precision):
    config, file = tiny_config(optimizer="muon", precision=precision), tmp_path / "checkpoint.pt"
    whole, resumed = tiny_net(), tiny_net()
    losses = fit(whole, tiny_data, config, progress=False).frame()["train_loss"]
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]

    saved = []
    monkeypatch.setattr(
        "eeutils.training.loop.save_checkpoint", lambda path, state: saved.append(deepcopy(state)), raising=True
    )
    fit(tiny_net(), tiny_data, config, checkpoint=file, progress=False)
    torch.save(saved[1], file)  # after the first epoch
    fit(resumed, tiny_data, config, checkpoint=file, progress=False)

    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
