from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune, weight_norm

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.policies import ThresholdPolicy
from eeutils.cascade import Cascade
from eeutils.models import (
    MultiExitNet,
    create_model,
    list_models,
    map_tensors,
    prepared_for_inference,
    resnet18,
    stage_modules,
    truncate,
)


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def with_statistics(net: nn.Module) -> nn.Module:
    """Return `net` in evaluation mode, with norms that change their input."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


@pytest.fixture
def net() -> MultiExitNet:
    return with_statistics(resnet18(width=4, exit_after=(2, 4), pool="spp"))


def head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def layers(channels: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]


def answers_the_same(net: MultiExitNet) -> MultiExitNet:
    images = torch.randn(4, 3, 16, 16)
    prepared = prepared_for_inference(net)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-3, atol=1e-4)
    return prepared


# Norms after an activation, or before the first convolution of a block, cannot be folded.
KEPT = {"wideresnet32_4": 16, "airnet": 3}


@pytest.mark.parametrize("name", list_models())
def test_prepared_networks_have_no_norm_after_a_convolution(name):
    family = name.removesuffix("_sdn").removesuffix("_3exits")
    prepared = answers_the_same_at_32(with_statistics(create_model(name, width=2)))
    assert norms(prepared) == KEPT.get(family, 0)


def answers_the_same_at_32(net: MultiExitNet) -> MultiExitNet:
    images, prepared = torch.randn(2, 3, 32, 32), prepared_for_inference(net)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-2, atol=1e-3)
    return prepared


def test_prepared_units_are_folded_unless_an_exit_reads_between_them():
    units = [*layers(), *layers()[:2]]
    prepared = answers_the_same(with_statistics(MultiExitNet(units, {3: head(), 4: head()})))
    assert [type(unit) for unit in prepared.units] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]


def test_prepared_units_used_twice_stay():
    unit = nn.Sequential(*layers())
    assert norms(answers_the_same(with_statistics(MultiExitNet([unit, unit], {1: head()})))) == 1


@pytest.mark.parametrize("layer", [0, 1])
def test_prepared_layers_with_hooks_stay(layer):
    unit = nn.Sequential(*layers())
    unit[layer].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert norms(answers_the_same(with_statistics(MultiExitNet([unit], {0: head()})))) == 1


class Tapped(nn.Module):
    """Reads its second convolution beside the norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = (*layers()[:2], *layers()[:2])

    def forward(self, x: Tensor) -> Tensor:
        tapped = self.conv2(self.norm1(self.conv1(x)))
        return tapped + self.norm2(tapped)


def test_prepared_graphs_are_folded_where_the_norm_alone_reads_the_convolution():
    unit = fx.symbolic_trace(Tapped())
    prepared = answers_the_same(with_statistics(MultiExitNet([unit], {0: head()})))
    assert isinstance(prepared.units[0].norm1, nn.Identity)
    assert isinstance(prepared.units[0].norm2, nn.BatchNorm2d)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [lambda conv: prune.random_unstructured(conv, "weight", 0.5), weight_norm])
def test_pruned_and_weight_normed_networks_cost_and_answer_as_they_are(net, change):
    change(net.units[0][0])
    prepared = answers_the_same(net)
    assert norms(prepared) == 0
    assert torch.equal(exit_costs(net, (3, 16, 16)), exit_costs(prepared, (3, 16, 16)))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(Cascade(net, ThresholdPolicy(1.0))(images).logits, net(images)[-1].detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_networks_are_told_to_measure_seconds(net):
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with pytest.raises(ValueError, match="measure_seconds"):
        exit_costs(quantized, (3, 16, 16))


def test_hooks_do_not_see_the_counting_of_costs(net):
    net.units[0].register_forward_hook(lambda *_: pytest.fail("seen"))
    assert len(exit_costs(net, (3, 16, 16))) == 3


class Carrying(nn.Module):
    """Returns a map and the images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(x), x


class Sum(nn.Module):
    """Begins in place, and adds what was carried past the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.activation(x[0]) + x[1]


class OfFirst(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0].mean((2, 3))


def carrying() -> MultiExitNet:
    return MultiExitNet([Carrying(), Sum(), nn.Conv2d(3, 3, 1)], {0: OfFirst(), 2: head()}).eval()


@pytest.mark.parametrize("build", [None, carrying], ids=["blocks", "tensors carried past an exit"])
def test_stages_one_after_the_other_answer_as_the_network(net, build):
    net = build() if build else net
    x, answers = torch.randn(3, 3, 16, 16), []
    expected, stages = net(x), stage_modules(net)
    for stage in stages:
        x, logits = stage(x)
        answers.append(logits)
    assert all(torch.equal(ours, other) for ours, other in zip(answers, expected, strict=True))
    weights = {id(weight) for stage in stages for weight in stage.parameters()}
    assert weights == {id(weight) for weight in net.parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_stages_have_the_mode_of_their_network(net, training):
    net.train(training)
    assert all(module.training is training for stage in stage_modules(net) for module in stage.modules())


@torch.no_grad()
def exported(net: MultiExitNet, folder: Path) -> list[nn.Module]:
    """Return the stages of `net`, written to files and read back."""
    x, num_images, stages = torch.zeros(2, 3, 16, 16), torch.export.Dim("num_images"), []
    for index, stage in enumerate(stage_modules(net)):
        shapes = map_tensors(lambda _: {0: num_images}, x)
        program = torch.export.export(stage, (x,), dynamic_shapes=[shapes])
        torch.export.save(program, folder / f"stage{index}.pt2")
        stages.append(torch.export.load(folder / f"stage{index}.pt2").module())
        x, _ = stage(x)
    return stages


@torch.no_grad()
def walk(stages: list[Callable], x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return logits and exit of every image; those that an exit is sure of leave."""
    rows, logits, exit_index = torch.arange(len(x)), torch.zeros(len(x), 10), torch.zeros(len(x), dtype=torch.int64)
    for index, stage in enumerate(stages):
        x, answer = stage(x)
        logits[rows], exit_index[rows] = answer, index
        staying = answer.softmax(1).amax(1) < threshold
        x, rows = x[staying], rows[staying]
        if len(rows) == 0:
            break
    return logits, exit_index


def test_exported_stages_with_a_threshold_answer_as_the_cascade(net, tmp_path):
    net = truncate(net, 1)
    stages = exported(prepared_for_inference(net).to(memory_format=torch.contiguous_format), tmp_path)
    images = torch.randn(12, 3, 16, 16)
    scores = net(images)[0].detach().softmax(1).amax(1).sort().values
    threshold = float(scores[5:7].mean())  # in the middle, where none is near
    expected = Cascade(net, ThresholdPolicy(threshold))(images)
    assert len(set(expected.exit_index.tolist())) > 1
    logits, exit_index = walk(stages, images, threshold)
    assert torch.equal(exit_index, expected.exit_index)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_exported_stages_may_hand_on_a_tuple(tmp_path):
    net, x, answers = carrying(), torch.randn(5, 3, 16, 16), []
    expected = net(x)
    for stage in exported(net, tmp_path):
        x, logits = stage(x)
        answers.append(logits)
    torch.testing.assert_close(answers, expected)


@pytest.mark.parametrize("ask", [stage_modules, prepared_for_inference])
def test_networks_without_exits_are_refused(ask):
    with pytest.raises(TypeError, match="Conv2d"):
        ask(nn.Conv2d(3, 3, 1))
