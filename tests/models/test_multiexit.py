from collections import OrderedDict, namedtuple
from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.models import MultiExitNet, resnet18
from eeutils.models.multiexit import map_tensors


def test_forward_is_the_heads_on_the_features(net, images):
    heads = [head(feature) for head, feature in zip(net.exits.values(), net.forward_features(images), strict=True)]
    torch.testing.assert_close(net(images), heads, rtol=0, atol=0)


def test_stages_walked_by_hand_give_the_forward(net, images):
    x, answers = images, []
    for stage in net.stages():
        for unit in stage.units:
            x = unit(x)
        answers.append(stage.head(x))
    torch.testing.assert_close(answers, net(images), rtol=0, atol=0)
    assert sum(len(stage.units) for stage in net.stages()) == len(net.units)


def cut_by_layers() -> MultiExitNet:
    """As one cuts `list(vgg16().features)`: a unit overwrites what an exit reads, a head what the next unit reads."""

    def head(*first: nn.Module) -> nn.Sequential:
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    torch.manual_seed(0)
    units = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)]
    return MultiExitNet(units, {0: head(), 2: head(nn.ReLU(inplace=True)), 4: head()})


def out_of_place(net: MultiExitNet) -> MultiExitNet:
    net = deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def test_layers_that_work_in_place_change_no_exits_answer_and_no_gradient(images):
    net = cut_by_layers()
    same = out_of_place(net)
    assert [stage.head_reads_a_copy for stage in net.stages()] == [True, True, False]
    assert not any(stage.head_reads_a_copy for stage in same.stages())
    torch.testing.assert_close(net(images), same(images), rtol=0, atol=0)
    torch.testing.assert_close(net.forward_features(images), same.forward_features(images), rtol=0, atol=0)
    for each in (net, same):
        sum(answer.square().sum() for answer in each(images)).backward()
    for ours, expected in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "made_of",
    [
        lambda one, other: (one, other),
        lambda one, other: [one, (other, None, "name")],
        lambda one, other: {"map": one, "skipped": [other, 3]},
        lambda one, other: OrderedDict(map=one, skipped=other),
        Pair,
    ],
)
def test_whatever_units_hand_on_is_changed_tensor_by_tensor(made_of):
    one, other = torch.zeros(2), torch.ones(3)
    changed = map_tensors(lambda tensor: len(tensor), made_of(one, other))
    assert changed == made_of(2, 3)
    assert type(changed) is type(made_of(2, 3))


class Carrying(nn.Module):
    """Gives its map and the images that it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.convolution(x), x


class Sum(nn.Module):
    """A unit that begins in place, with a layer of its own, and adds what was carried past it."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.activation(x[0]) + x[1]


class OfFirst(nn.Module):
    """A head that reads the map alone."""

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return x[0].mean((2, 3))


def test_units_may_carry_more_than_a_map_past_an_exit(images):
    net = MultiExitNet([Carrying(), Sum()], {0: OfFirst(), 1: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())})
    assert [stage.head_reads_a_copy for stage in net.stages()] == [True, False]
    features = net.units[0].convolution(images)
    expected = [features.mean((2, 3)), (features.relu() + images).mean((2, 3))]
    torch.testing.assert_close(net(images), expected)
    torch.testing.assert_close(net.forward_features(images)[0], (features, images))


def test_exits_are_ordered_by_depth_whatever_order_they_are_given_in():
    units = [nn.Identity() for _ in range(11)]
    net = MultiExitNet(units, {10: nn.Flatten(), 2: nn.Flatten(), 9: nn.Flatten()})
    assert net.exit_after == (2, 9, 10)
    assert net.num_exits == 3


def test_the_backbones_keys_do_not_depend_on_the_exits():
    def backbone(net: MultiExitNet) -> list[str]:
        return [key for key in net.state_dict() if key.startswith("units.")]

    assert backbone(resnet18(width=4)) == backbone(resnet18(width=4, exit_after=(0, 3), pool="spp"))


def test_a_network_needs_units():
    with pytest.raises(ValueError, match="at least one unit"):
        MultiExitNet([], {})


@pytest.mark.parametrize("unit", [-1, 2])
def test_an_exit_needs_a_unit_to_follow(unit):
    with pytest.raises(ValueError, match=rf"\[{unit}\].*0\.\.1"):
        MultiExitNet([nn.Identity(), nn.Identity()], {unit: nn.Flatten(), 1: nn.Flatten()})


def test_the_last_unit_needs_an_exit():
    with pytest.raises(ValueError, match=r"last unit \(1\) has no exit.*\[0\]"):
        MultiExitNet([nn.Identity(), nn.Identity()], {0: nn.Flatten()})
