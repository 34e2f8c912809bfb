"""The moving average of a network's weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eeutils.models import resnet18
from eeutils.training import fit
from eeutils.training.optimizer import WeightAverage


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=5), decay=st.floats(0.1, 0.99))
def test_it_is_the_exponential_moving_average(values, decay):
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


def test_the_first_weights_are_soon_forgotten():
    net = resnet18(width=1)
    average = WeightAverage(net, 0.999)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()

    for step in range(20):
        average.update(step)

    assert max(float(parameter.detach().abs().max()) for parameter in average.net.parameters()) < 1e-6


def test_the_average_is_a_network_of_its_own():
    net = resnet18(width=1)
    average = WeightAverage(net.train(), 0.5)

    average.update(0)

    assert not average.net.training
    assert net.training
    assert not {id(tensor) for tensor in net.parameters()} & {id(tensor) for tensor in average.net.parameters()}


class Masked(nn.Module):
    """With a mask as attention has one: minus infinity above the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_mask_of_infinities_stays_as_it_is():
    net = resnet18(width=1)
    net.units[0].append(Masked())
    mask, weight = net.units[0][-1].mask.clone(), net.units[0][0].weight.detach().clone()
    average = WeightAverage(net, 0.9)
    with torch.no_grad():
        net.units[0][0].weight.zero_()

    average.update(0)

    assert torch.equal(average.net.units[0][-1].mask, mask)
    torch.testing.assert_close(average.net.units[0][0].weight.detach(), 0.1 * weight)


def test_a_weight_that_is_not_finite_is_seen_in_the_average():
    net = resnet18(width=1)
    with torch.no_grad():
        net.units[0][0].weight[0] = math.inf
    average = WeightAverage(net, 0.9)

    average.update(0)

    assert average.net.units[0][0].weight[0].isnan().all()


def test_a_run_ends_with_the_average_that_it_validated(tiny_net, tiny_data, tiny_config):
    plain, averaged = tiny_net(), tiny_net()
    fit(plain, tiny_data, tiny_config(), progress=False)
    history = fit(averaged, tiny_data, tiny_config(average_decay=0.9), progress=False)

    assert not torch.equal(plain.units[0][0].weight, averaged.units[0][0].weight)
    right = torch.stack(averaged(tiny_data.normalization(tiny_data.val.images))).argmax(-1) == tiny_data.val.labels
    assert [history.rows[-1][f"val_accuracy_exit{exit}"] for exit in (1, 2, 3)] == right.float().mean(1).tolist()


def test_an_averaged_run_goes_on_where_it_stopped(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(average_decay=0.9, bias_learning_rate=4.0)
    undisturbed, resumed = tiny_net(), tiny_net()
    fit(undisturbed, tiny_data, config, progress=False)

    saves = []

    def kill_after_the_second_epoch(path, state, save=torch.save):
        save(state, path)
        saves.append(path)
        if len(saves) == 3:  # the first is made before the first epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eeutils.training.loop.save_checkpoint", kill_after_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(resumed, tiny_data, config, checkpoint=tmp_path / "run.pt", progress=False)
    fit(resumed, tiny_data, config, checkpoint=tmp_path / "run.pt", progress=False)

    assert len(saves) == 3
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
