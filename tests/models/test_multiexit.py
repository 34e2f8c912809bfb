from collections import OrderedDict, namedtuple
from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils import MultiExitNet
from eeutils.models import map_tensors
from tests.toys import carrying_net, cut_by_layers


def test_stages_walked_by_hand_give_the_forward(net, images):
    x, answers = images, []
    for stage in net.stages():
        for unit in stage.units:
            x = unit(x)
        answers.append(stage.head(x))
    torch.testing.assert_close(answers, net(images), rtol=0, atol=0)
    assert sum(len(stage.units) for stage in net.stages()) == len(net.units)


def out_of_place(net: MultiExitNet) -> MultiExitNet:
    net = deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def test_stages_copy_features_for_layers_that_work_in_place(images):
    net = cut_by_layers()
    same = out_of_place(net)
    assert [stage.head_reads_a_copy for stage in net.stages()] == [True, True, False]
    assert not any(stage.head_reads_a_copy for stage in same.stages())
    torch.testing.assert_close(net(images), same(images), rtol=0, atol=0)
    for each in (net, same):
        sum(answer.square().sum() for answer in each(images)).backward()
    for ours, expected in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "made_of",
    [
        lambda one, other: [one, (other, None, "name")],
        lambda one, other: OrderedDict(map=one, skipped=[other, 3]),
        Pair,
    ],
)
def test_map_tensors_keeps_the_structure(made_of):
    one, other = torch.zeros(2), torch.ones(3)
    changed = map_tensors(len, made_of(one, other))
    assert changed == made_of(2, 3)
    assert type(changed) is type(made_of(2, 3))


def test_multi_exit_net_units_may_carry_tensors_past_an_exit(images):
    net = carrying_net()
    assert [stage.head_reads_a_copy for stage in net.stages()] == [True, False]
    features = net.units[0].convolution(images)
    joined = net.units[1].layers(torch.cat([features, images], 1))
    expected = [net.exits["0"].layers(features.clone()), net.exits["1"](joined)]
    torch.testing.assert_close(net(images), expected)


def test_multi_exit_net_orders_exits_by_depth():
    net = MultiExitNet([nn.Identity() for _ in range(11)], {10: nn.Flatten(), 2: nn.Flatten(), 9: nn.Flatten()})
    assert (net.exit_after, net.num_exits) == ((2, 9, 10), 3)


@pytest.mark.parametrize("places", [(-1, 1), (1, 2), (0,)])
def test_multi_exit_net_needs_an_exit_after_the_last_unit(places):
    with pytest.raises(ValueError, match=str(places[0])):
        MultiExitNet([nn.Identity(), nn.Identity()], {place: nn.Flatten() for place in places})
    with pytest.raises(ValueError, match="got"):
        MultiExitNet([], {})
