import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from eeutils import Cascade, MultiExitNet, ThresholdPolicy, create_model, list_models
from eeutils.analysis import exit_costs
from eeutils.models import map_tensors, prepared_for_inference, resnet18, stage_modules
from tests.toys import carrying_net, unchanged, with_statistics


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.fixture
def net() -> MultiExitNet:
    return with_statistics(resnet18(width=4, exit_after=(2, 4), pool="spp"))


def layers() -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]


def answers_the_same(net: MultiExitNet, size: int = 16) -> MultiExitNet:
    images, prepared = torch.randn(4, 3, size, size), prepared_for_inference(net)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-2, atol=1e-3)
    return prepared


# Norms after an activation, or before the first convolution of a block, cannot be folded.
KEPT = {"wideresnet32_4": 16, "airnet": 3}


@pytest.mark.parametrize("name", list_models())
def test_prepared_for_inference_leaves_no_norm_after_a_convolution(name):
    family = name.removesuffix("_sdn").removesuffix("_3exits")
    prepared = answers_the_same(with_statistics(create_model(name, width=2)), size=32)
    assert norms(prepared) == KEPT.get(family, 0)


def test_prepared_for_inference_folds_units_unless_an_exit_reads_between_them():
    units = [*layers(), *layers()[:2]]
    prepared = answers_the_same(with_statistics(MultiExitNet(units, {3: nn.Flatten(), 4: nn.Flatten()})))
    assert [type(unit) for unit in prepared.units] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [lambda conv: prune.random_unstructured(conv, "weight", 0.5), weight_norm])
def test_prepared_for_inference_keeps_answers_and_costs_of_pruned_and_weight_normed_networks(net, change):
    change(net.units[0][0])
    with unchanged(net):
        prepared = answers_the_same(net)
    assert norms(prepared) == 0
    assert torch.equal(exit_costs(net, (3, 16, 16)), exit_costs(prepared, (3, 16, 16)))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(Cascade(net, ThresholdPolicy(1.0))(images).logits, net(images)[-1].detach())


@pytest.mark.parametrize("kind", ["blocks", "tensors carried past an exit"])
@torch.no_grad()
def test_stage_modules_exported_or_not_answer_as_the_network(net, kind):
    net = prepared_for_inference(net).to(memory_format=torch.contiguous_format) if kind == "blocks" else carrying_net()
    x, num_images = torch.randn(3, 3, 16, 16), torch.export.Dim("num_images")
    expected, more = net(x), torch.cat([x, x])
    for stage, logits in zip(stage_modules(net), expected, strict=True):
        shapes = map_tensors(lambda _: {0: num_images}, x)
        exported = torch.export.export(stage, (x,), dynamic_shapes=[shapes]).module()
        (x, ours), (more, theirs) = stage(x), exported(more)
        assert torch.equal(ours, logits)
        torch.testing.assert_close(theirs, torch.cat([logits, logits]))
