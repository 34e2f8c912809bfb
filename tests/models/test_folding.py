from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from eeutils.models import MultiExitNet, create_model, list_models, prepared_for_inference


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def with_statistics(net: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and weights of norms that matter when they are folded."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.copy_(torch.linspace(-0.5, 0.5, module.num_features))
            module.running_var.copy_(torch.linspace(0.5, 2, module.num_features))
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def last() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(*units: nn.Module, head: nn.Module | None = None) -> MultiExitNet:
    return with_statistics(MultiExitNet(units, {len(units) - 1: head or last()}))


def answers_the_same(net: MultiExitNet, channels: int = 3) -> MultiExitNet:
    images = torch.randn(4, channels, 8, 8)
    prepared = prepared_for_inference(net)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-3, atol=1e-4)
    return prepared


@pytest.mark.parametrize("name", list_models())
def test_in_networks_of_this_package_every_norm_after_a_convolution_is_folded(name):
    with torch.device("meta"):
        prepared = prepared_for_inference(create_model(name))
    chains = [module for module in prepared.modules() if isinstance(module, nn.Sequential)]
    kinds = [[type(layer) for layer in chain] for chain in chains]
    assert any(nn.Conv2d in chain for chain in kinds)
    assert not any(pair == (nn.Conv2d, nn.BatchNorm2d) for chain in kinds for pair in pairwise(chain))


def resnet_block() -> nn.Module:
    shortcut = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6))
    return torchvision.models.resnet.BasicBlock(3, 6, downsample=shortcut)


def mobilenet_block() -> nn.Module:
    return torchvision.models.mobilenetv2.InvertedResidual(3, 3, 1, 4)


@pytest.mark.parametrize("block", [resnet_block, mobilenet_block])
def test_every_norm_of_blocks_from_elsewhere_is_folded(block):
    torch.manual_seed(0)
    net = network(nn.Sequential(block()))
    assert norms(net) == 3
    assert norms(answers_the_same(net)) == 0


def test_units_that_are_layers_are_folded_unless_an_exit_reads_between_them():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)]
    net = with_statistics(MultiExitNet(layers, {3: last(), 4: last()}))
    prepared = answers_the_same(net)
    assert [type(unit) for unit in prepared.units] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]


def test_a_unit_that_comes_twice_stays_as_it_is():
    torch.manual_seed(0)
    unit = body()
    assert norms(answers_the_same(network(unit, unit))) == 1


def test_a_norm_before_its_convolution_stays():
    layer = torchvision.models.densenet._DenseLayer(3, 2, 2, 0)
    net = network(layer, head=nn.Sequential(nn.Conv2d(2, 2, 1), *last()))
    assert norms(net) == 2
    assert norms(answers_the_same(net)) == 1


def body() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())


class Block(nn.Module):
    """Its body, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Tapped(Block):
    """Adds up what each layer of its body gives."""

    def forward(self, x: Tensor) -> Tensor:
        taps = [x := layer(x) for layer in self.body]
        return sum(taps)


class ReadInPart(Block):
    """Leaves out its body's norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body[2](self.body[0](x))


class Standardized(Block):
    """Computes with its body's weights and not with its layers."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.body[0].weight
        return self.body(x) + nn.functional.conv2d(x, weight / weight.std(), padding=1)


class OfItsState(Block):
    """Computes with a copy of its body's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + nn.functional.conv2d(x, self.body.state_dict()["0.weight"] * 2, padding=1)


class Whitened(Block):
    """Computes with a view of its norm's statistics before it computes with its body."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / self.body[1].running_var.view(1, -1, 1, 1))


class Recentred(Block):
    """Computes with its norm's statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body[1].running_mean[None, :, None, None]


class Tied(Block):
    """Has a second convolution with the weights of the first, and computes with those."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.body[0].weight
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(x)) + nn.functional.conv2d(x, self.other.weight, padding=1)


class Twice(Block):
    """Uses its body two times, the second time without the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body[0](self.body(x))


class AsksForClasses(Block):
    """Does something after each norm."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = x * 2 + 1
        return x


class AsksForAttributes(Block):
    """Does what its norm is asked about."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.body[1].num_features


class TwoNames(Block):
    """Knows its convolution by another name as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = self.body[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.body[1](self.convolution(x))


class BySize(Block):
    """Leaves out the norm for small images, which these are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body[0](x) if x.shape[-1] < 16 else self.body(x)


class ByValue(Block):
    """Leaves out the norm where the image is dark."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body[0](x) if x.amax() < 10 else self.body(x)


class NormInTraining(Block):
    """Keeps its norm in training mode."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.body[1].train()
        return self


READERS = [
    Tapped, ReadInPart, Standardized, OfItsState, Whitened, Recentred, Tied, Twice,
    AsksForClasses, AsksForAttributes, TwoNames, BySize, ByValue, NormInTraining,
]  # fmt: skip


@pytest.mark.parametrize("place", ["unit", "within a unit", "head"])
@pytest.mark.parametrize("block", READERS)
def test_blocks_that_do_more_with_their_layers_answer_the_same(block, place):
    torch.manual_seed(0)
    unit = {"unit": block(), "within a unit": nn.Sequential(body(), block()), "head": body()}[place]
    answers_the_same(network(unit, head=nn.Sequential(block(), *last()) if place == "head" else None))


@pytest.mark.parametrize("block", [BySize, ByValue])
def test_beside_what_cannot_be_recorded_norms_are_folded(block):
    net = network(nn.Sequential(body(), block(), Block()))
    assert norms(answers_the_same(net)) == 1


class Around(nn.Module):
    """What lies within it, and nothing else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_what_lies_deep_within_is_recorded_a_few_times_only():
    runs = []

    class Counted(ByValue):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(x)
            return super().forward(x)

    unit, depth = Counted(), 8
    for _ in range(depth):
        unit = Around(unit)
    prepared_for_inference(network(unit))
    assert len(runs) < 5 * depth


class Remembering(Block):
    """Makes a mask of the first map that it sees, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = x.mean((0, 2, 3), keepdim=True)
        return self.body(x) + self.mask


def test_recording_leaves_nothing_behind_in_a_block():
    torch.manual_seed(0)
    assert norms(answers_the_same(network(Remembering()))) == 0


def test_a_layer_that_two_units_share_stays_as_it_is():
    first = Block()
    second = ReadInPart()
    second.body = first.body
    answers_the_same(network(first, second))


def hooks(seen: list) -> dict[str, Callable[[nn.Module], None]]:
    return {
        "after": lambda module: module.register_forward_hook(lambda *arguments: seen.append(arguments[-1])),
        "before": lambda module: module.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs)),
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", ["body", "body.0", "body.1", ""])
def test_hooks_see_images_and_what_they_saw_before(where, when):
    torch.manual_seed(0)
    seen = []
    net = network(nn.Sequential(Block()))
    hooks(seen)[when](net.units[0][0].get_submodule(where))
    prepared = prepared_for_inference(net)
    assert seen == []
    images = torch.randn(4, 3, 8, 8)
    net(images), prepared(images)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-4)


class Normalizing(Block):
    """Normalises the images with statistics that lie in buffers without the dimensions of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3))
        self.register_buffer("std", torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean[:, None, None]) / self.std.view(1, -1, 1, 1))


def test_beside_what_is_computed_of_buffers_norms_are_folded():
    torch.manual_seed(0)
    net = network(nn.Sequential(Normalizing(), Block()))
    assert norms(answers_the_same(net)) == 0


@pytest.mark.parametrize(("layer", "method"), [(0, "forward"), (0, "_conv_forward"), (1, "forward")])
def test_a_layer_whose_method_was_replaced_stays_as_it_is(layer, method):
    torch.manual_seed(0)
    net = network(Block())
    patched = net.units[0].body[layer]
    original = getattr(patched, method)
    setattr(patched, method, lambda *arguments: 2 * original(*arguments))
    assert norms(answers_the_same(net)) == 1


def test_a_hook_may_compute_with_the_layers_of_its_module():
    torch.manual_seed(0)
    net = network(Block())
    net.units[0].register_forward_hook(lambda module, inputs, output: output + module.body[0](*inputs))
    assert norms(answers_the_same(net)) == 1
