from collections import OrderedDict, namedtuple
from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.models import (
    MultiExitNet,
    add_exits,
    copy_backbone,
    create_exit,
    drop_exits,
    resnet18,
    resnet18_3exits,
    truncate,
)
from eeutils.models.multiexit import map_tensors


@pytest.fixture
def net() -> MultiExitNet:
    torch.manual_seed(0)
    return resnet18_3exits(width=4, exit_after=(2, 4)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def assert_same_answers(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(ours) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_forward_is_the_heads_on_the_features(net, images):
    heads = [head(feature) for head, feature in zip(net.exits.values(), net.forward_features(images), strict=True)]
    assert_same_answers(net(images), heads)


def test_stages_walked_by_hand_give_the_forward(net, images):
    x, answers = images, []
    for stage in net.stages():
        for unit in stage.units:
            x = unit(x)
        answers.append(stage.head(x))
    assert_same_answers(answers, net(images))
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
    assert_same_answers(net(images), same(images))
    assert_same_answers(net.forward_features(images), same.forward_features(images))
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


def test_added_exits_answer_beside_the_old_ones(net, images):
    more = add_exits(net, {6: create_exit("spp", 16, 10)})
    assert more.exit_after == (2, 4, 6, 8)
    assert_same_answers([more(images)[index] for index in (0, 1, 3)], net(images))


def test_training_a_network_with_added_exits_leaves_the_original_untouched(net, images):
    head = create_exit("avg", 16, 10)
    before, head_before = snapshot(net), snapshot(head)
    more = add_exits(net, {6: head}).train()
    optimizer = torch.optim.SGD(more.parameters(), lr=0.1)
    sum(answer.square().sum() for answer in more(images)).backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(tensor, head_before[name]) for name, tensor in head.state_dict().items())
    assert not torch.equal(more.units[0][0].weight, net.units[0][0].weight)
    assert not net.training


def test_dropped_exits_leave_the_others_answers_and_share_the_weights(net, images):
    fewer = drop_exits(net, [2])
    assert fewer.exit_after == (4, 8)
    assert net.exit_after == (2, 4, 8)
    assert_same_answers(fewer(images), net(images)[1:])
    assert fewer.units[0][0].weight is net.units[0][0].weight


def test_added_and_dropped_again_is_the_network_itself(net, images):
    same = drop_exits(add_exits(net, {6: create_exit("avg", 16, 10)}), [6])
    assert_same_answers(same(images), net(images))
    assert list(same.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize(("exit_index", "num_units"), [(0, 3), (1, 5), (2, 9)])
def test_a_truncated_network_ends_at_its_exit_and_shares_the_weights(net, images, exit_index, num_units):
    short = truncate(net, exit_index)
    assert len(short.units) == num_units
    assert_same_answers(short(images), net(images)[: exit_index + 1])
    assert short.units[0][0].weight is net.units[0][0].weight
    assert len(net.units) == 9


@pytest.mark.parametrize("training", [True, False])
def test_new_networks_keep_the_mode_of_the_old_one(net, training):
    net.train(training)
    for new in (add_exits(net, {6: create_exit("avg", 16, 10)}), drop_exits(net, [2]), truncate(net, 0)):
        assert all(module.training is training for module in new.modules())  # a head that was added, too
    assert all(module.training is training for module in net.modules())


def test_new_networks_leave_each_part_in_its_own_mode(net):
    net.train().units[0].eval()
    for new in (add_exits(net, {6: create_exit("avg", 16, 10)}), drop_exits(net, [2]), truncate(net, 0)):
        assert new.training
        for each in (net, new):
            assert not any(module.training for module in each.units[0].modules())


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


def test_a_unit_takes_one_exit(net):
    with pytest.raises(ValueError, match=r"\[4\] already have an exit"):
        add_exits(net, {4: create_exit("avg", 8, 10)})


def test_an_exit_cannot_be_added_after_a_unit_that_is_not_there(net):
    with pytest.raises(ValueError, match=r"\[9\].*0\.\.8"):
        add_exits(net, {9: create_exit("avg", 8, 10)})


def test_only_exits_that_are_there_can_be_dropped(net):
    with pytest.raises(ValueError, match=r"\[3\].*\(2, 4, 8\)"):
        drop_exits(net, [2, 3])


def test_the_last_exit_cannot_be_dropped(net):
    with pytest.raises(ValueError, match="last unit"):
        drop_exits(net, [8])


@pytest.mark.parametrize("exit_index", [-1, 3])
def test_a_network_is_cut_at_an_exit_that_is_there(net, exit_index):
    with pytest.raises(ValueError, match=rf"{exit_index} is not in 0\.\.2"):
        truncate(net, exit_index)


_WITHOUT_LAST_EXIT = r"copy_backbone\(net, donor, last_exit=False\)$"


def test_a_backbone_is_copied_and_early_exits_are_left_alone():
    donor, net = resnet18(width=4, exit_after=(2,)), resnet18(width=4, exit_after=(2,))
    early = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.startswith("exits.2.")}
    others = {name: tensor for name, tensor in donor.state_dict().items() if name not in early}

    copy_backbone(net, donor)

    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in others.items())
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in early.items())
    with torch.no_grad():
        next(donor.parameters()).zero_()
    assert next(net.parameters()).abs().max() > 0


def test_a_backbone_is_copied_between_networks_for_other_classes():
    donor, net = resnet18(width=4), resnet18(width=4, num_classes=3)
    last = deepcopy(net.exits.state_dict())

    copy_backbone(net, donor, last_exit=False)

    units = donor.units.state_dict()
    assert all(torch.equal(tensor, units[name]) for name, tensor in net.units.state_dict().items())
    assert all(torch.equal(tensor, last[name]) for name, tensor in net.exits.state_dict().items())


def test_who_wants_the_backbone_alone_is_not_told_to_ask_for_it_alone():
    with pytest.raises(ValueError, match="another backbone than this network") as caught:
        copy_backbone(resnet18(width=4), resnet18(width=8), last_exit=False)
    assert "copy_backbone" not in str(caught.value)


def test_a_donor_with_further_units_is_refused():
    donor = resnet18(width=4, exit_after=(2,))
    with pytest.raises(ValueError, match=rf"another backbone or last exit .*{_WITHOUT_LAST_EXIT}"):
        copy_backbone(truncate(donor, 0), donor)


@pytest.mark.parametrize(
    "donor",
    [resnet18(width=8), resnet18(width=4, num_classes=3), truncate(resnet18(width=4, exit_after=(2,)), 0)],
    ids=["wider", "other classes", "cut off"],
)
def test_a_donor_with_another_backbone_is_refused(donor):
    net = resnet18(width=4)
    before = deepcopy(net.state_dict())

    with pytest.raises(ValueError, match=rf"another backbone or last exit .*{_WITHOUT_LAST_EXIT}"):
        copy_backbone(net, donor)

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda net: add_exits(net, {0: nn.Flatten()}),
        lambda net: drop_exits(net, [0]),
        lambda net: truncate(net, 0),
        lambda net: copy_backbone(net, resnet18(width=4)),
        lambda net: copy_backbone(resnet18(width=4), net),
    ],
)
def test_a_network_without_exits_is_to_be_cut_into_units_first(change):
    with pytest.raises(TypeError, match=r"Sequential has no exits; cut it into units .*MultiExitNet\(units"):
        change(nn.Sequential(nn.Conv2d(3, 4, 3)))
