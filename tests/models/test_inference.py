from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.cascade import Cascade
from eeutils.models import (
    MultiExitNet,
    map_tensors,
    prepared_for_inference,
    resnet18,
    stage_modules,
    truncate,
)


@pytest.fixture
def net() -> MultiExitNet:
    torch.manual_seed(0)
    net = resnet18(width=4, exit_after=(2, 4), pool="spp")
    net(torch.randn(16, 3, 16, 16) * 2 + 1)  # in training mode: norms get statistics that matter when they are folded
    return net.eval()


def test_a_prepared_network_answers_the_same_and_has_no_batch_norm_left(net):
    prepared = prepared_for_inference(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    images = torch.randn(5, 3, 16, 16)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-3, atol=1e-4)


class Carrying(nn.Module):
    """Gives its map and the images that it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(x), x


class Sum(nn.Module):
    """Begins in place, and adds what was carried past an exit."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.activation(x[0]) + x[1]


class OfFirst(nn.Module):
    """A head that reads the map alone."""

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0].mean((2, 3))


def carrying() -> MultiExitNet:
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return MultiExitNet([Carrying(), Sum(), nn.Conv2d(3, 3, 1)], {0: OfFirst(), 2: last}).eval()


@pytest.mark.parametrize("kind", ["blocks", "what is carried past an exit, and a unit that works in place"])
def test_stages_one_after_the_other_answer_as_the_network(net, kind):
    net = net if kind == "blocks" else carrying()
    x, answers = torch.randn(3, 3, 16, 16), []
    expected = net(x)
    for stage in stage_modules(net):
        x, logits = stage(x)
        answers.append(logits)
    assert all(torch.equal(ours, other) for ours, other in zip(answers, expected, strict=True))


def test_stages_share_the_weights_and_nothing_is_left_out(net):
    stages = stage_modules(net)
    weights = {id(weight) for stage in stages for weight in stage.parameters()}
    assert weights == {id(weight) for weight in net.parameters()}


@torch.no_grad()
def exported(net: MultiExitNet, folder: Path) -> list[nn.Module]:
    """The stages of `net`, from files."""
    x, num_images = torch.zeros(2, 3, 16, 16), torch.export.Dim("num_images")
    stages = []
    for index, stage in enumerate(stage_modules(net)):
        shapes = map_tensors(lambda _: {0: num_images}, x)
        program = torch.export.export(stage, (x,), dynamic_shapes=[shapes])
        torch.export.save(program, folder / f"stage{index}.pt2")
        stages.append(torch.export.load(folder / f"stage{index}.pt2").module())
        x, _ = stage(x)
    return stages


@torch.no_grad()
def walk(stages: list[nn.Module], x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Logits and exit of every image; those that an exit is sure of leave."""
    rows, logits, exit_index = torch.arange(len(x)), torch.zeros(len(x), 10), torch.zeros(len(x), dtype=torch.int64)
    for index, stage in enumerate(stages):
        x, answer = stage(x)
        logits[rows], exit_index[rows] = answer, index
        staying = answer.softmax(1).amax(1) < threshold
        x, rows = x[staying], rows[staying]
        if len(rows) == 0:
            break
    return logits, exit_index


def test_exported_stages_and_a_threshold_between_them_answer_as_the_cascade(net, tmp_path):
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
    alone, _ = walk(stages, images[:1], threshold)
    torch.testing.assert_close(alone, expected.logits[:1], rtol=1e-3, atol=1e-4)


def test_stages_that_hand_on_a_tuple_can_be_exported(tmp_path):
    net, images = carrying(), torch.randn(5, 3, 16, 16)
    x, answers = images, []
    for stage in exported(net, tmp_path):
        x, logits = stage(x)
        answers.append(logits)
    for exported_answer, answer in zip(answers, net(images), strict=True):
        torch.testing.assert_close(exported_answer, answer)


def test_a_network_without_exits_has_no_stages():
    with pytest.raises(TypeError, match="Conv2d has no exits"):
        stage_modules(nn.Conv2d(3, 3, 1))


def test_a_network_without_exits_cannot_be_prepared():
    with pytest.raises(TypeError, match="Conv2d has no exits"):
        prepared_for_inference(nn.Conv2d(3, 3, 1))
