from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from eeutils.analysis.costs import measure_costs
from eeutils.models import create_exit, create_model, resnet18, resnet18_2exits, resnet18_3exits, resnet56
from eeutils.models.resnet import BasicBlock, PaddedShortcut


def key_in_torchvision(key: str) -> str:
    """Name in torchvision's ResNet18 of what is `key` here."""
    part, unit, rest = key.split(".", 2)
    if part == "exits":
        return rest.replace("2.", "fc.")
    if unit == "0":
        return rest.replace("0.", "conv1.", 1) if rest.startswith("0.") else rest.replace("1.", "bn1.", 1)
    layer, block = divmod(int(unit) - 1, 2)
    module, index, name = rest.split(".")
    if module == "shortcut":
        return f"layer{layer + 1}.{block}.downsample.{index}.{name}"
    inside = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}[index]
    return f"layer{layer + 1}.{block}.{inside}.{name}"


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_answers_as_torchvisions_with_the_same_weights(training):
    theirs = torchvision_resnet18(num_classes=10).train(training)
    ours = resnet18(stem="imagenet").train(training)
    state = theirs.state_dict()
    keys = {key: key_in_torchvision(key) for key in ours.state_dict()}
    assert sorted(keys.values()) == sorted(state)
    ours.load_state_dict({key: state[other] for key, other in keys.items()})
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(ours(images)[0], theirs(images))


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("pool", ["avg", "mixed", "spp"])
def test_resnet18_reads_images_of_any_size(stem, pool):
    net = resnet18(width=2, in_channels=1, num_classes=5, pool=pool, stem=stem, exit_after=(0, 3)).eval()
    for size in ((1, 1), (33, 20)):
        assert [tuple(answer.shape) for answer in net(torch.randn(3, 1, *size))] == [(3, 5)] * 3


@pytest.mark.parametrize(("stem", "grids"), [("cifar", [4, 2, 1]), ("imagenet", [2, 1, 1])])
def test_resnet18_makes_mixed_heads_for_its_image_size(stem, grids):
    net = resnet18(width=2, image_size=8, pool="mixed", stem=stem, exit_after=(2, 5))
    assert [head.pool.grid for head in net.exits.values()] == grids


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


def test_resnet18_draws_the_same_backbone_whatever_the_exits():
    def fresh(**kwargs) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        return resnet18(width=2, **kwargs).units.state_dict()

    plain, other = fresh(), fresh(exit_after=(3, 5), pool="conv+spp+spp")
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_resnet18_compiles_as_one_graph(compiled):
    net, images = resnet18_3exits(width=2, pool="spp").eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        forward, graphs = compiled(net)
        torch.testing.assert_close(forward(images), net(images))
    assert len(graphs) == 1


@pytest.mark.parametrize("image_size", [32, 64])
def test_resnet56_has_the_published_size_and_cost(image_size):
    with torch.device("meta"):
        net = resnet56()
    costs = measure_costs(net, (3, image_size, image_size))
    # Two 3x3 convolutions a block; the first of a stage reads the maps of the stage before, at half their size.
    params, macs = [9 * 3 * 16 + 2 * 16], [9 * 3 * 16 * image_size**2]
    for channels, before, size in ((16, 16, image_size), (32, 16, image_size // 2), (64, 32, image_size // 4)):
        for inputs in (before, *[channels] * 8):
            kernels = 9 * inputs * channels + 9 * channels**2
            params.append(kernels + 4 * channels)
            macs.append(kernels * size**2)
    assert costs.unit_params.tolist() == params
    assert costs.unit_macs.tolist() == macs
    assert costs.exit_params.tolist() == [64 * 10 + 10]
    if image_size == 32:
        assert costs.cumulative_params.item() == pytest.approx(0.85e6, rel=0.005)
        assert costs.cumulative_macs.item() == pytest.approx(125.5e6, rel=0.001)


def test_resnet56_has_56_weighted_layers():
    layers = [module for module in resnet56(width=1).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 56


def test_basic_block_passes_its_input_on_if_the_residual_is_silent():
    block, x = BasicBlock(4, 4).eval(), torch.rand(2, 4, 5, 5)
    nn.init.zeros_(block.residual[-1].weight)
    assert torch.equal(block(x), x)
    assert (BasicBlock(4, 4)(x - 2) >= 0).all()


@pytest.mark.parametrize("size", [5, 8])
def test_padded_shortcut_takes_every_other_pixel_and_adds_zeros(size):
    x = torch.randn(2, 3, size, size)
    y = PaddedShortcut(3, 6, 2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert (y.shape[1], int(y[:, 3:].count_nonzero())) == (6, 0)
    assert BasicBlock(3, 6, 2, PaddedShortcut(3, 6, 2))(x).shape == y.shape
