"""Layers that learn how large they are from the first images that they see."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.data import ImageData, Normalization, Split
from eeutils.models import MultiExitNet
from eeutils.training import TrainConfig, fit


def make_split() -> Split:
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    return Split(pixels, torch.arange(20) % 10, tuple("0123456789"), Normalization((0.5,) * 3, (0.25,) * 3))


def lazy_net() -> MultiExitNet:
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    return MultiExitNet([nn.Conv2d(3, 4, 3), nn.ReLU()], {0: deepcopy(head), 1: head})


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, split: predict(net, split),
        lambda net, split: predict(net, split, costs=[1, 2]),
        lambda net, split: Cascade(net, ThresholdPolicy(0.5)),
        lambda net, split: fit(net, ImageData("own", split, split, split), TrainConfig(epochs=1), progress=False),
    ],
    ids=["predict", "predict with costs", "cascade", "fit"],
)
def test_lazy_layers_without_weights_are_named(ask):
    with pytest.raises(ValueError, match=r"a lazy layer .* call net\(images\) once first"):
        ask(lazy_net(), make_split())


def test_lazy_layers_that_have_got_weights_are_as_any():
    net, split = lazy_net(), make_split()
    images, _ = next(split.batches(2))
    net(images)
    assert torch.equal(Cascade(net, ThresholdPolicy(0.0)).run(split).exit_index, torch.zeros(20, dtype=torch.int64))
