import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeutils.analysis.gradcam import (
    central_share,
    explain,
    grad_cam,
    guided_backprop,
    guided_grad_cam,
    hires_cam,
    map_correlation,
    map_spread,
)
from eeutils.models import MultiExitNet, create_model
from eeutils.models.exits import average_pool_exit

METHODS = [grad_cam, hires_cam, guided_backprop, guided_grad_cam]
NETWORKS = {
    "resnet18_sdn": {"width": 4},
    "resnet18_3exits": {"width": 4, "pool": "spp"},
    "resnet18": {"width": 4},
    "vgg16_sdn": {"width": 4},
    "wideresnet32_4_sdn": {"width": 2},
    "mobilenet_sdn": {"width": 4},
}

each_method = pytest.mark.parametrize("method", METHODS)
# The other two are made of these.
each_way_in = pytest.mark.parametrize("method", [grad_cam, guided_backprop])
each_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> MultiExitNet:
    torch.manual_seed(0)
    return create_model(name, **NETWORKS[name]).eval()


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def net_of(*units: nn.Module, head: nn.Module) -> MultiExitNet:
    return MultiExitNet(units, {len(units) - 1: head}).eval()


def linear(weights: list[list[float]], bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights))
    layer.weight.data, layer.bias.data = torch.tensor(weights), torch.full((len(weights),), bias)
    return layer


def averaging(weights: list[list[float]], bias: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(weights, bias))


# By hand.


def test_grad_cam_weighs_channels_as_a_pooling_head_does():
    net = net_of(nn.Identity(), head=averaging([[1.0, -1.0], [-2.0, 1.0]], bias=3.0))
    image = torch.tensor([[[[4.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 0.0]]]])

    # Class 0: 4 - 0, 1 - 3, 0 - 1, 2 - 0. Class 1: -8 + 0, -2 + 3, 0 + 1, -4 + 0.
    assert grad_cam(net, image, 0, 0).tolist() == [[[1.0, 0.0], [0.0, 0.5]]]
    assert grad_cam(net, image, 0, 1).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]


def test_a_head_that_reads_places_keeps_them_in_hires_cam_and_not_in_grad_cam():
    net = net_of(nn.Identity(), head=nn.Sequential(nn.Flatten(), linear([[2.0, -1.0, 1.0, 0.0]])))
    image = torch.tensor([[[[1.0, 1.0], [4.0, 2.0]]]])

    assert hires_cam(net, image, 0, 0).tolist() == [[[0.5, 0.0], [1.0, 0.0]]]
    assert grad_cam(net, image, 0, 0).tolist() == [[[0.25, 0.25], [1.0, 0.5]]]  # all weighed by 0.5


def test_a_map_that_speaks_against_the_class_is_zero():
    net = net_of(nn.Identity(), head=averaging([[-1.0], [1.0]]))

    maps = grad_cam(net, torch.ones(2, 1, 4, 4), 0, [0, 1])

    assert maps[0].eq(0).all()
    assert maps[1].eq(1).all()


def test_a_small_map_is_enlarged_to_the_image():
    net = net_of(nn.MaxPool2d(4), head=averaging([[1.0]]))
    image = torch.zeros(1, 1, 8, 8)
    image[..., 5, 1] = 3.0  # in the cell at the lower left

    (enlarged,) = grad_cam(net, image, 0, 0)

    assert enlarged.shape == (8, 8)
    assert enlarged[6:, :2].eq(1).all()
    assert enlarged[:2].eq(0).all()
    assert 0 < enlarged[6, 4] < enlarged[6, 3] < 1


def test_pooling_that_ends_a_unit_does_not_hide_where_the_evidence_is():
    net = net_of(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), head=averaging([[1.0]]))
    image = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]])

    assert grad_cam(net, image, 0, 0).tolist() == [[[0.0, 1.0], [0.5, 0.0]]]
    assert hires_cam(net, image, 0, 0).tolist() == [[[0.0, 1.0], [0.0, 0.0]]]  # only the maximum has a say


def test_a_map_of_one_cell_is_refused():
    net = net_of(nn.Conv2d(1, 1, 2), head=averaging([[1.0]]))

    for method in (grad_cam, hires_cam, guided_grad_cam):
        with pytest.raises(ValueError, match="the map under exit 0 has a single cell"):
            method(net, torch.ones(1, 1, 2, 2), 0, 0)


class Tokens(nn.Module):
    """(N, C, H, W) -> (N, H x W, C)"""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT


class Pair(nn.Module):
    """Hands on two maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[:, :1]


class OfFirst(nn.Module):
    """Averages the first thing it reads, an image's rows or a pair's first map."""

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        return x.mean(1) if isinstance(x, Tensor) else x[0].mean((2, 3))


@pytest.mark.parametrize("method", [grad_cam, hires_cam, guided_grad_cam])
@pytest.mark.parametrize(
    ("unit", "complaint"),
    [
        (Tokens(), r"exit 0 reads Tensor of shape \(2, 16, 3\), not a feature map \(N, C, H, W\)"),
        (Pair(), r"exit 0 reads tuple of shape \(\(2, 3, 4, 4\), \(2, 1, 4, 4\)\), not a feature map"),
    ],
)
def test_an_exit_that_reads_no_feature_map_is_named(method, unit, complaint):
    net = net_of(nn.Conv2d(3, 3, 1), unit, head=OfFirst())

    with pytest.raises(ValueError, match=complaint):
        method(net, torch.randn(2, 3, 4, 4), 0)


def test_guided_backprop_drops_what_was_negative_on_either_way():
    conv = nn.Conv2d(1, 3, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1)
    net = net_of(conv, nn.ReLU(inplace=True), head=nn.Sequential(nn.Flatten(), linear([[2.0, -3.0, 5.0]])))

    # The plain gradient is 2 - 3 = -1; the third path is off going up, the second is against the class going down.
    assert guided_backprop(net, torch.ones(1, 1, 1, 1), 0, 0).tolist() == [[[[2.0]]]]


# Against the definitions, on whole networks.


class GuidedRelu(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(context, gradient):
        return gradient.clamp_min(0) * (context.saved_tensors[0] > 0)


def logit_sum(logits: Tensor) -> Tensor:
    return logits.amax(1).sum()


def ends_in_pooling(unit: nn.Module) -> bool:
    return isinstance(unit, nn.Sequential) and isinstance(unit[-1], nn.MaxPool2d)


@each_network
def test_grad_cam_is_its_definition_at_every_exit(name):
    net, images = network(name), pictures(2)
    for index, (unit, head) in enumerate(zip(net.exit_after, net.exits.values(), strict=True)):
        layers = [layer for each in net.units[: unit + 1] for layer in (each if ends_in_pooling(each) else [each])]
        if isinstance(layers[-1], nn.MaxPool2d):
            head = nn.Sequential(layers.pop(), head)
        feature = nn.Sequential(*layers)(images).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(logit_sum(head(feature.clone())), feature)
        expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1, keepdim=True).relu()
        expected = F.interpolate(expected, (32, 32), mode="bilinear")[:, 0]

        expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
        torch.testing.assert_close(grad_cam(net, images, index), expected, atol=1e-4, rtol=1e-4)


@each_network
def test_guided_backprop_is_its_definition_at_every_exit(name, monkeypatch):
    net, images = network(name), pictures(2)
    ours = [guided_backprop(net, images, index) for index in range(net.num_exits)]

    monkeypatch.setattr(nn.ReLU, "forward", lambda _, x: GuidedRelu.apply(x))
    pixels = images.clone().requires_grad_()
    for mine, logits in zip(ours, net(pixels), strict=True):
        (expected,) = torch.autograd.grad(logit_sum(logits), pixels, retain_graph=True)
        assert expected.abs().max() > 0
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)


def test_guided_grad_cam_is_the_product_and_explain_has_all_of_it():
    net, images = network("resnet18_sdn"), pictures(3)

    found = explain(net, images, 2)

    logits = net(images)[2]
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert torch.equal(found.predicted, logits.argmax(1))
    assert torch.equal(found.grad_cam, grad_cam(net, images, 2))
    assert torch.equal(found.guided_grad_cam, guided_backprop(net, images, 2) * found.grad_cam[:, None])
    assert torch.equal(found.guided_grad_cam, guided_grad_cam(net, images, 2))


def test_after_global_average_pooling_both_cams_are_one():
    net, images = network("resnet18_sdn"), pictures(3)

    torch.testing.assert_close(hires_cam(net, images, 6), grad_cam(net, images, 6), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(hires_cam(net, images, 0), grad_cam(net, images, 0), atol=1e-2)


# For any network and images.


@each_method
def test_one_image_gets_what_it_gets_in_a_batch(method):
    net, images = network("resnet18_sdn"), pictures(4)

    together = method(net, images, 3)

    alone = torch.cat([method(net, image[None], 3) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-3)


@each_method
def test_no_images_get_no_maps(method):
    maps = method(network("resnet18_sdn"), pictures(0), 0)

    assert maps.shape == ((0, 3, 32, 32) if method in (guided_backprop, guided_grad_cam) else (0, 32, 32))


@each_method
def test_other_exits_and_deeper_units_have_no_say(method):
    net, images = network("resnet18_sdn"), pictures(2)
    before = method(net, images, 2)

    for index, head in enumerate(net.exits.values()):
        if index != 2:
            for parameter in head.parameters():
                parameter.data.fill_(torch.nan)
    for parameter in net.units[net.exit_after[2] + 1].parameters():
        parameter.data.fill_(torch.nan)

    assert torch.equal(method(net, images, 2), before)


@each_method
def test_the_predicted_class_is_the_default_and_others_can_be_asked_for(method):
    net, images = network("resnet18_3exits"), pictures(3)
    predicted = net(images)[1].argmax(1)

    default = method(net, images, 1)

    assert torch.equal(default, method(net, images, 1, predicted))
    assert torch.equal(default, method(net, images, 1, predicted.tolist()))
    other = (predicted + 1) % 10
    mixed = method(net, images, 1, torch.stack([predicted[0], other[1], predicted[2]]))
    assert torch.equal(mixed[[0, 2]], default[[0, 2]])
    assert torch.equal(method(net, images, 1, int(other[1]))[1], mixed[1])
    assert not torch.equal(mixed[1], default[1])


def state_of(net: MultiExitNet) -> list:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (module.training, getattr(module, "inplace", None), *(len(getattr(module, kind)) for kind in hooks))
        for module in net.modules()
    ]
    parameters = [(parameter.requires_grad, parameter.grad.numpy().tobytes()) for parameter in net.parameters()]
    return [modules, parameters, {key: tensor.numpy().tobytes() for key, tensor in net.state_dict().items()}]


@pytest.mark.parametrize("target", [None, 10], ids=["fine", "an error"])
@each_method
def test_the_network_and_the_images_are_left_as_they_were(method, target):
    net, images = network("vgg16_sdn").train(), pictures(2)
    net.units[1].eval()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    given, before = images.clone(), state_of(net)

    if target is None:
        method(net, images, 1)
    else:
        with pytest.raises(ValueError, match="target 10"):
            method(net, images, 1, target)

    assert state_of(net) == before
    assert torch.equal(images, given)
    assert not images.requires_grad


@each_method
def test_maps_are_of_the_network_as_it_infers_whatever_its_mode(method):
    net, images = network("wideresnet32_4_sdn"), pictures(2)
    evaluating = method(net, images, 6)

    assert torch.equal(method(net.train(), images, 6), evaluating)  # no dropout, no statistics of the batch
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(method(net, images.clone(), 6), evaluating)


def test_frozen_networks_and_differentiable_images_are_fine():
    net, images = network("resnet18_sdn"), pictures(2)
    expected = guided_grad_cam(net, images, 1)

    maps = guided_grad_cam(net.requires_grad_(False), images.requires_grad_(), 1)

    assert torch.equal(maps, expected)
    assert not maps.requires_grad
    assert images.grad is None


# What is refused.


@each_way_in
@pytest.mark.parametrize("index", [-1, 7])
def test_there_is_no_such_exit(method, index):
    with pytest.raises(ValueError, match=rf"got {index}"):
        method(network("resnet18_sdn"), pictures(1), index)


@each_way_in
@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (10, r"target 10 .* 0\.\.9"),
        (-1, "target -1"),
        ([0, 12], "target 12"),
        ([0], r"each of 2 images, got \(1,\)"),
        ([[0, 1]], r"each of 2 images, got \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), "whole numbers, got torch.float32"),
        (torch.tensor([True, False]), "whole numbers, got torch.bool"),
    ],
)
def test_there_is_no_such_class(method, target, complaint):
    with pytest.raises(ValueError, match=complaint):
        method(network("resnet18_sdn"), pictures(2), 1, target)


@each_way_in
@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.zeros(3, 32, 32), r"\(N, C, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8; normalise"),
        (torch.zeros(2, 1, 32, 32), "does not fit the network"),
    ],
)
def test_images_that_do_not_fit(method, images, complaint):
    with pytest.raises(ValueError, match=complaint):
        method(network("resnet18_sdn"), images, 1)


class Block(nn.Module):
    """A unit that applies ReLU without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.relu(self.conv(x)) - 0.1)


def test_a_relu_that_cannot_be_guided_is_refused_and_no_matter_for_grad_cam():
    net = net_of(Block(), head=average_pool_exit(4, 10))

    with pytest.raises(ValueError, match="1 of the network's 2 ReLUs are functions"):
        guided_backprop(net, pictures(1), 0)
    assert grad_cam(net, pictures(1), 0).shape == (1, 32, 32)


# Figures of maps.


def in_the_middle(value: float) -> Tensor:
    """8x8 zeros, `value` in the 16 pixels in the middle."""
    return F.pad(torch.full((1, 4, 4), value), (2, 2, 2, 2))


def test_the_central_share_by_hand():
    corner = torch.zeros(1, 8, 8)
    corner[0, 0, 0] = 1.0
    maps = torch.cat([torch.ones(1, 8, 8), in_the_middle(2.0), corner, corner + in_the_middle(1 / 16), 0 * corner])

    assert central_share(maps).tolist() == pytest.approx([0.25, 1.0, 0.0, 0.5, torch.nan], nan_ok=True)
    with pytest.raises(ValueError, match="multiples of 4, got 8x6"):
        central_share(maps[:, :, :6])


def test_the_spread_by_hand():
    maps = torch.cat([torch.ones(1, 8, 8), in_the_middle(3.0), torch.zeros(1, 8, 8)])

    assert map_spread(maps).tolist() == pytest.approx([1.0, 0.25, torch.nan], nan_ok=True)


def test_the_correlation_of_maps_by_hand():
    maps = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    others = torch.stack([3 * maps[0] + 1, 1 - maps[0], torch.full((8, 8), 0.1), torch.rand(8, 8)])

    found = map_correlation(maps, others)

    assert found[:2].tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    assert found[2].isnan()
    assert found[3] == pytest.approx(float(torch.corrcoef(torch.stack([maps[3].flatten(), others[3].flatten()]))[0, 1]))
    with pytest.raises(ValueError, match="cannot be compared"):
        map_correlation(maps, others[:2])
