from collections.abc import Callable

import pytest
import torch
from torch import nn

from eeutils import MultiExitNet, create_model
from eeutils.models import add_exits, copy_backbone, create_exit, drop_exits, resnet18, truncate, widen_backbone
from tests.toys import changed, unchanged, weights, with_statistics


def test_add_exits_leaves_the_others_answers(net, images):
    more = add_exits(net, {6: create_exit("spp", 16, 10)})
    assert more.exit_after == (2, 4, 6, 8)
    torch.testing.assert_close([more(images)[index] for index in (0, 1, 3)], net(images), rtol=0, atol=0)
    same = drop_exits(more, [6])
    torch.testing.assert_close(same(images), net(images), rtol=0, atol=0)
    assert same.units[0][0].weight is more.units[0][0].weight
    assert list(same.state_dict()) == list(net.state_dict())


def test_add_exits_copies_network_and_heads(net):
    head = create_exit("avg", 16, 10)
    with unchanged(net, head), torch.no_grad():
        for parameter in add_exits(net, {6: head}).parameters():
            parameter.zero_()


@pytest.mark.parametrize(("exit_index", "num_units"), [(0, 3), (1, 5), (2, 9)])
def test_truncate_ends_at_the_exit_and_shares_the_weights(net, images, exit_index, num_units):
    short = truncate(net, exit_index)
    assert (len(short.units), len(net.units)) == (num_units, 9)
    torch.testing.assert_close(short(images), net(images)[: exit_index + 1], rtol=0, atol=0)
    assert short.units[0][0].weight is net.units[0][0].weight


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda net: add_exits(net, {4: create_exit("avg", 8, 10)}), r"\[4\]"),
        (lambda net: drop_exits(net, [2, 3]), r"\[2, 3\]"),
        (lambda net: truncate(net, 3), "3"),
    ],
)
def test_surgery_names_units_and_exits_that_do_not_fit(net, change, got):
    with pytest.raises(ValueError, match=got):
        change(net)
    with pytest.raises(TypeError, match="Sequential"):
        change(nn.Sequential(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize("last_exit", [True, False])
def test_copy_backbone_copies_the_units_and_the_last_exit(last_exit):
    donor = resnet18(width=4, exit_after=(2,))
    net = resnet18(width=4, exit_after=(2,), num_classes=10 if last_exit else 3)
    kept = ("exits.2.",) if last_exit else ("exits.",)
    expected = donor.state_dict() | {key: each for key, each in weights(net).items() if key.startswith(kept)}
    copy_backbone(net, donor, last_exit=last_exit)
    assert changed(net, expected) == set()
    with torch.no_grad():
        next(donor.parameters()).zero_()
    assert next(net.parameters()).abs().max() > 0


@pytest.mark.parametrize(
    ("change", "donor", "got"),
    [
        (copy_backbone, lambda: resnet18(width=8), r"\(8, 3, 3, 3\) .*'units\.0\.0\.weight'"),
        (copy_backbone, lambda: resnet18(width=4, num_classes=3), r"'exits\.8\..*last_exit=False"),
        (copy_backbone, lambda: truncate(resnet18(width=4, exit_after=(2,)), 0), r"'units\.3\."),
        (widen_backbone, lambda: resnet18(width=8), r"\(8, 3, 3, 3\).*\(4, 3, 3, 3\)"),
    ],
)
def test_copy_and_widen_backbone_name_layers_that_differ(change, donor: Callable[[], MultiExitNet], got):
    net = resnet18(width=4)
    with unchanged(net), pytest.raises(ValueError, match=got):
        change(net, donor())


@pytest.mark.parametrize(
    ("model", "factor"), [("resnet18_3exits", 3), ("resnet56", 2), ("mobilenet", 2), ("wideresnet32_4", 2)]
)
def test_widen_backbone_repeats_each_channel_of_each_unit(model, factor):
    wide = narrow = torch.randn(2, 3, 32, 32, dtype=torch.float64)  # ResNet56 is deep enough to multiply rounding
    donor, net = (create_model(model, width=width).double() for width in (2, 2 * factor))
    with unchanged(net.exits):
        widen_backbone(net.eval(), with_statistics(donor))
    for unit, narrow_unit in zip(net.units, donor.units, strict=True):
        wide, narrow = unit(wide), narrow_unit(narrow)
        torch.testing.assert_close(wide, narrow.repeat_interleave(factor, dim=1))


def test_widen_backbone_gives_copies_gradients_that_differ(net, images):
    wide = resnet18(width=8, exit_after=(2, 4)).eval()
    widen_backbone(wide, net)
    first, second = wide.units[1].residual[0].weight.unflatten(0, (4, 2)).unbind(1)  # copies of the same filters
    assert not torch.equal(first, second)
    stem = wide.units[0][0].weight
    assert torch.equal(stem[::2], stem[1::2])
    sum(logits.square().sum() for logits in wide(images)).backward()
    assert (stem.grad[::2] - stem.grad[1::2]).abs().amax(dim=(1, 2, 3)).min() > 0
