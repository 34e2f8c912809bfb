import torch
from torch import nn

from eeutils.models.memory import named_weights


def test_parameters_and_running_statistics_are_weights_and_other_buffers_are_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.register_buffer("mask", torch.zeros(2))
    kept = dict(named_weights(net))
    assert net.state_dict().keys() - kept.keys() == {"mask", "1.num_batches_tracked"}
    assert kept["1.running_var"] is net[1].running_var


def test_a_tied_weight_comes_under_each_of_its_names():
    norm = nn.BatchNorm2d(4)
    names = {name for name, _ in named_weights(nn.Sequential(norm, norm))}
    assert names == {f"{at}.{what}" for at in (0, 1) for what in ("weight", "bias", "running_mean", "running_var")}
