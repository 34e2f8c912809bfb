from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from eeutils import create_model
from eeutils.models import create_exit, resnet18, resnet18_2exits, resnet18_3exits
from eeutils.models.resnet import BasicBlock, PaddedShortcut
from eeutils.weights import compare_with
from eeutils.weights.tensors import mapped_tensors


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_answers_as_torchvisions_with_the_same_weights(training):
    theirs = torchvision_resnet18(num_classes=10).train(training)
    ours = resnet18(stem="imagenet").train(training)
    report = compare_with(ours, theirs.state_dict())
    assert report.shapes_fit
    ours.load_state_dict(mapped_tensors(ours, report))
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(ours(images)[0], theirs(images))


def test_resnet18_has_its_exits_at_the_usual_places_or_elsewhere():
    for builder, places in ((resnet18, (8,)), (resnet18_2exits, (4, 8)), (resnet18_3exits, (3, 5, 8))):
        with torch.device("meta"):
            assert builder().exit_after == places
    assert sum(parameter.numel() for parameter in resnet18().parameters()) == 11_173_962
    assert resnet18_3exits(width=2, exit_after=(6, 1)).exit_after == (1, 6, 8)


@pytest.mark.parametrize("name", ["resnet18_3exits", "resnet56", "mobilenet"])
def test_create_model_pool_names_all_exits_and_none_keeps_the_own_classifier(name):
    def first_parts(heads: Iterable[nn.Module]) -> list[type]:
        return [type(head[0] if isinstance(head, nn.Sequential) else head) for head in heads]

    for pool, heads in {
        "conv+spp+avg": ("conv", "spp", "avg"),
        "spp": ("spp",) * 3,
        None: ("mixed", "mixed", "avg"),
    }.items():
        net = create_model(name, width=2, exit_after=(5, 3), pool=pool)
        assert first_parts(net.exits.values()) == first_parts(create_exit(each, 2, 2) for each in heads)


def test_resnet18_compiles_as_one_graph(graphs):
    net, images = resnet18_3exits(width=2, pool="spp").eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net)(images), net(images))
    assert len(graphs) == 1


@pytest.mark.parametrize("size", [5, 8])
def test_padded_shortcut_takes_every_other_pixel_and_adds_zeros(size):
    x = torch.randn(2, 3, size, size)
    y = PaddedShortcut(3, 6, 2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert (y.shape[1], int(y[:, 3:].count_nonzero())) == (6, 0)
    assert BasicBlock(3, 6, 2, PaddedShortcut(3, 6, 2))(x).shape == y.shape
