from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils.models import MultiExitNet, add_exits, copy_backbone, create_exit, drop_exits, resnet18, truncate


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_added_exits_answer_beside_the_old_ones(net, images):
    more = add_exits(net, {6: create_exit("spp", 16, 10)})
    assert more.exit_after == (2, 4, 6, 8)
    torch.testing.assert_close([more(images)[index] for index in (0, 1, 3)], net(images), rtol=0, atol=0)


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
    torch.testing.assert_close(fewer(images), net(images)[1:], rtol=0, atol=0)
    assert fewer.units[0][0].weight is net.units[0][0].weight


def test_added_and_dropped_again_is_the_network_itself(net, images):
    same = drop_exits(add_exits(net, {6: create_exit("avg", 16, 10)}), [6])
    torch.testing.assert_close(same(images), net(images), rtol=0, atol=0)
    assert list(same.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize(("exit_index", "num_units"), [(0, 3), (1, 5), (2, 9)])
def test_a_truncated_network_ends_at_its_exit_and_shares_the_weights(net, images, exit_index, num_units):
    short = truncate(net, exit_index)
    assert len(short.units) == num_units
    torch.testing.assert_close(short(images), net(images)[: exit_index + 1], rtol=0, atol=0)
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


def test_a_unit_takes_one_exit(net):
    with pytest.raises(ValueError, match=r"\[4\] already have an exit"):
        add_exits(net, {4: create_exit("avg", 8, 10)})


def test_an_exit_cannot_be_added_after_a_unit_that_is_not_there(net):
    with pytest.raises(ValueError, match=r"\[9\].*0\.\.8"):
        add_exits(net, {9: create_exit("avg", 8, 10)})


def test_only_exits_that_are_there_can_be_dropped(net):
    with pytest.raises(ValueError, match=r"\[3\].*\(2, 4, 8\)"):
        drop_exits(net, [2, 3])


@pytest.mark.parametrize(
    ("after", "message"), [(2, r"a sequence, such as \(2,\), got 2"), (iter([2]), r"such as \(2, 4\), got <")]
)
def test_exits_to_drop_are_a_sequence(net, after, message):
    with pytest.raises(ValueError, match=message):
        drop_exits(net, after)


def test_the_last_exit_cannot_be_dropped(net):
    with pytest.raises(ValueError, match="last unit"):
        drop_exits(net, [8])


@pytest.mark.parametrize("exit_index", [-1, 3])
def test_a_network_is_cut_at_an_exit_that_is_there(net, exit_index):
    with pytest.raises(ValueError, match=rf"{exit_index} is not in 0\.\.2"):
        truncate(net, exit_index)


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


def biased(net: MultiExitNet) -> MultiExitNet:
    """`net` with a bias that its first convolution had not."""
    convolution = next(module for module in net.units[0].modules() if isinstance(module, nn.Conv2d))
    convolution.bias = nn.Parameter(torch.ones(convolution.out_channels))
    return net


@pytest.mark.parametrize(
    ("donor", "message"),
    [
        (resnet18(width=8), r"another backbone .*'units\.0\..*differ or are missing$"),
        (biased(resnet18(width=4)), r"another backbone .*\['units\.0\..*bias'\] differ or are missing$"),
        (
            resnet18(width=4, num_classes=3),
            r"another last exit .*'exits\.8\..*copy_backbone\(net, donor, last_exit=False\)$",
        ),
        (truncate(resnet18(width=4, exit_after=(2,)), 0), "3 units, this network 9$"),
        (MultiExitNet([*resnet18(width=4).units, nn.Flatten()], {9: nn.Flatten()}), "10 units, this network 9$"),
    ],
    ids=["wider", "with a bias", "other classes", "cut off", "further units"],
)
def test_a_donor_that_is_built_otherwise_is_refused(donor, message):
    net = resnet18(width=4)
    before = deepcopy(net.state_dict())

    with pytest.raises(ValueError, match=message):
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
