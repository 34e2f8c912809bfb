import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eeutils import TrainConfig
from eeutils.models import resnet18
from eeutils.training.optimizer import (
    Muon,
    WeightAverage,
    create_optimizer,
    gradients_for,
    learning_rate,
    orthogonal,
    restore_optimizer,
    trained_part,
)
from tests.toys import cut_by_layers

CPU = torch.device("cpu")


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update by gradients that are always the same."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("trained", ["exits", "early_exits"])
def test_gradients_for_reach_the_trained_part(dropout_net, trained):
    net = dropout_net()
    frozen = next(net.exits["2"].parameters()).requires_grad_(False)
    with gradients_for(net, trained):
        sum(answer.sum() for answer in net(torch.randn(2, 3, 8, 8)) if answer.requires_grad).backward()
    reached = {id(parameter) for parameter in net.parameters() if parameter.grad is not None}
    assert reached == {id(parameter) for parameter in trained_part(net, trained).parameters()} - {id(frozen)}
    assert [each for each in net.parameters() if not each.requires_grad] == [frozen]


def test_gradients_for_exits_stand_a_backbone_that_works_in_place():
    net = cut_by_layers()
    with gradients_for(net, "early_exits"):
        net(torch.randn(4, 3, 8, 8))[0].sum().backward()
    reached = {name for name, each in net.named_parameters() if each.grad is not None}
    assert reached == {"exits.0.2.weight", "exits.0.2.bias"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_create_optimizer_stands_a_first_step_that_overflows(tiny_net, tiny_config, momentum):
    """A GradScaler has the fused kernel skip such a step."""
    nets = {"cuda": tiny_net(), "cpu": tiny_net()}  # the devices that the kernels are for; the weights are on the CPU
    config = tiny_config(momentum=momentum, nesterov=False)
    fused, plain = (create_optimizer(net, config, torch.device(name)) for name, net in nets.items())
    before = deepcopy(nets["cuda"].state_dict())
    junk = [torch.full_like(parameter, 1e30) for parameter in nets["cuda"].parameters()]
    del junk  # what the next allocation finds
    fused.grad_scale, fused.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    step(nets["cuda"], fused)
    assert all(torch.equal(tensor, before[name]) for name, tensor in nets["cuda"].state_dict().items())
    fused.found_inf = torch.tensor(0.0)
    for _ in range(2):
        step(nets["cuda"], fused)
        step(nets["cpu"], plain)
    torch.testing.assert_close(nets["cuda"].state_dict(), nets["cpu"].state_dict())


@pytest.mark.parametrize("kind", ["sgd", "muon", "adam"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # the one that the kernel is for; the weights are on the CPU
def test_restore_optimizer_keeps_state_but_not_the_kernel(tiny_net, tiny_config, kind, device):
    net, resumed, config = tiny_net(), tiny_net(), tiny_config(optimizer=kind, bias_learning_rate=8.0)
    optimizer, fresh = create_optimizer(net, config, CPU), create_optimizer(resumed, config, torch.device(device))
    step(net, optimizer)
    resumed.load_state_dict(net.state_dict())
    restore_optimizer(fresh, deepcopy(optimizer.state_dict()))
    assert all(bool(group["fused"]) == (device == "cuda" and kind != "muon") for group in fresh.param_groups)
    step(net, optimizer)
    step(resumed, fresh)
    torch.testing.assert_close(resumed.state_dict(), net.state_dict())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_create_optimizer_decays_two_dimensions_or_more_by_l2(tiny_config, kind):
    """With a gradient of 0, L2 makes Adam move a weight by the whole rate; AdamW would hardly move it."""
    part = nn.ModuleList([nn.LayerNorm((2, 4, 4)), nn.LayerNorm(4), nn.Linear(3, 3)])
    nn.init.constant_(part[2].weight, 1.0)
    before = deepcopy(part.state_dict())
    optimizer = create_optimizer(part, tiny_config(optimizer=kind, weight_decay=0.01, learning_rate=0.1), CPU)
    for parameter in part.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, tensor in part.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"0.weight", "2.weight"}
    rate = 0.1 if kind == "adam" else 0.1 * 1.9 * 0.01
    torch.testing.assert_close(part[2].weight, torch.full((3, 3), 1 - rate))


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    steps = range(1, config.epochs * steps_per_epoch + 1)
    return [learning_rate(config, step, steps_per_epoch) for step in steps]


def test_learning_rate_by_hand():
    rising = TrainConfig(epochs=5, learning_rate=0.9, warmup=0.2)
    assert rates(rising, 2) == pytest.approx([0.45, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert rates(TrainConfig(epochs=4, learning_rate=0.4, warmup=0.0), 1) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    halving = TrainConfig(epochs=5, learning_rate=0.4, schedule="halving", halve_every=2)
    assert rates(halving, 2) == pytest.approx([0.4] * 4 + [0.2] * 4 + [0.1] * 2)
    steps = TrainConfig(epochs=20, learning_rate=0.4, schedule="steps", drops=(0.35, 0.6, 0.85))
    epochs = [0.4] * 7 + [0.04] * 5 + [0.004] * 5 + [0.0004] * 3
    assert rates(steps, 7) == pytest.approx([rate for rate in epochs for _ in range(7)])


def test_learning_rate_rounds_shares_of_the_run():
    assert 0.29 * 100 < 29
    dropping = rates(TrainConfig(epochs=100, learning_rate=0.4, schedule="steps", drops=(0.29,)), 1)
    assert dropping == pytest.approx([0.4] * 29 + [0.04] * 71)
    rising = rates(TrainConfig(epochs=100, learning_rate=0.4, warmup=0.29), 1)
    assert rising.index(max(rising)) == 28


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=5), decay=st.floats(0.1, 0.99))
def test_weight_average_is_the_exponential_moving_average(values, decay):
    net = resnet18(width=1)
    weight, bias, mean = net.units[0][0].weight, net.units[0][1].bias, net.units[0][1].running_mean
    expected = [float(tensor.detach().flatten()[0]) for tensor in (weight, bias, mean)]
    average = WeightAverage(net, decay)
    for step, value in enumerate(values):
        with torch.no_grad():
            for tensor in (weight, bias, mean):
                tensor.fill_(value)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = [kept * each + (1 - kept) * value for each in expected]
    stem = average.net.units[0]
    found = [float(tensor.detach().flatten()[0]) for tensor in (stem[0].weight, stem[1].bias, stem[1].running_mean)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_weight_average_keeps_a_mask_and_shows_a_weight_that_is_not_finite():
    net = resnet18(width=1)
    mask = torch.full((3, 3), -math.inf).triu(1)  # as attention has it
    net.units[0].register_buffer("mask", mask.clone())
    with torch.no_grad():
        net.units[0][0].weight[0] = math.inf
    average = WeightAverage(net, 0.9)
    average.update(0)
    assert torch.equal(average.net.units[0].mask, mask)
    assert average.net.units[0][0].weight[0].isnan().all()


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
    optimizer = Muon([group(filters)], lr=0.1, momentum=0.5, nesterov=True, in_bf16=False)
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
    muon = Muon([group(*one.parameters(), is_orthogonal=False)], in_bf16=False, lr=0.1, momentum=0.9, nesterov=True)
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
