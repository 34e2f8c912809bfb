from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.models import MultiExitNet, create_exit
from eeutils.training import fit
from eeutils.training.optimizer import create_optimizer, restore_optimizer

CPU = torch.device("cpu")


def test_biases_of_norms_can_run_ahead(tiny_net, tiny_data, tiny_config):
    """After one step they have moved by so many times more, and nothing else has moved otherwise."""
    before = tiny_net().state_dict()
    one, ahead = tiny_net(), tiny_net()
    whole = {"epochs": 1, "batch_size": len(tiny_data.train), "momentum": 0.0, "nesterov": False}
    for net, rate in ((one, 1.0), (ahead, 8.0)):
        fit(net, tiny_data, tiny_config(**whole, bias_learning_rate=rate), progress=False)

    for name, parameter in one.named_parameters():
        moved, moved_ahead = (net.get_parameter(name) - before[name] for net in (one, ahead))
        bias_of_norm = name.endswith("bias") and name.startswith("units.")
        torch.testing.assert_close(moved_ahead, moved * (8 if bias_of_norm else 1), msg=name)
        assert parameter.grad is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_first_step_that_overflows_leaves_no_trace(tiny_net, tiny_config, momentum):
    """As a GradScaler has the fused kernel skip it; then a step as usual, against the kernel that is not fused."""
    nets = {"cuda": tiny_net(), "cpu": tiny_net()}  # the devices that the kernels are for; the weights are on the CPU
    config = tiny_config(momentum=momentum, nesterov=False, learning_rate=0.1)
    optimizers = {name: create_optimizer(net, config, torch.device(name)) for name, net in nets.items()}
    before = deepcopy(nets["cuda"].state_dict())
    for name, net in nets.items():
        torch.manual_seed(0)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        if name == "cuda":
            junk = [torch.full_like(parameter, 1e30) for parameter in net.parameters()]
            del junk  # what the next allocation finds
            optimizers[name].grad_scale, optimizers[name].found_inf = torch.tensor(1.0), torch.tensor(1.0)
            optimizers[name].step()
            assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
            optimizers[name].found_inf = torch.tensor(0.0)
        for _ in range(2):
            optimizers[name].step()
    torch.testing.assert_close(nets["cuda"].state_dict(), nets["cpu"].state_dict())


def test_norms_without_a_bias_have_none_to_run_ahead(tiny_data, tiny_config):
    units = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU()) for affine in (False, True)]
    units[1][0] = nn.Conv2d(4, 4, 3)
    net = MultiExitNet(units, {0: create_exit("avg", 4, 4), 1: create_exit("avg", 4, 4)})
    groups = create_optimizer(net, tiny_config(bias_learning_rate=8.0), CPU).param_groups
    assert [parameter is units[1][1].bias for parameter in groups[2]["params"]] == [True]
    fit(net, tiny_data, tiny_config(epochs=1, bias_learning_rate=8.0), progress=False)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update by gradients that are always the same."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "muon", "adam"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # the one that the kernel is for; the weights are on the CPU
def test_a_run_goes_on_with_what_its_optimizer_has_learnt(tiny_net, tiny_config, kind, device):
    """Also where an older version saved it, which had another name for a group's `lr_factor`."""
    net, resumed, config = tiny_net(), tiny_net(), tiny_config(optimizer=kind, bias_learning_rate=8.0)
    optimizer, fresh = create_optimizer(net, config, CPU), create_optimizer(resumed, config, torch.device(device))
    step(net, optimizer)
    resumed.load_state_dict(net.state_dict())
    saved = deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["learning_rates"] = group.pop("lr_factor")

    restore_optimizer(fresh, saved)

    assert [group["lr_factor"] for group in fresh.param_groups][-3:] == [1.0, 1.0, 8.0]
    assert all(bool(group["fused"]) == (device == "cuda" and kind != "muon") for group in fresh.param_groups)
    assert not any("learning_rates" in group for group in fresh.param_groups)
    step(net, optimizer)
    step(resumed, fresh)
    torch.testing.assert_close(resumed.state_dict(), net.state_dict())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_what_has_two_dimensions_or_more_decays_by_its_gradient(tiny_config, kind):
    """Where a gradient of 0 meets a decay, Adam moves a weight by the whole rate, AdamW by next to nothing."""
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
