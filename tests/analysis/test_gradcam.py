from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeutils import MultiExitNet, create_model
from eeutils.analysis import central_share, explain, grad_cam, guided_backprop, hires_cam, map_correlation, map_spread
from eeutils.models import create_exit
from tests.toys import Applies

NETWORKS = {
    "resnet18_3exits": {"width": 4, "pool": "spp"},
    "vgg16_sdn": {"width": 4},
    "wideresnet32_4_sdn": {"width": 1},
}

each_way_in = pytest.mark.parametrize("method", [grad_cam, guided_backprop])  # the others are made of these
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


def test_grad_cam_by_hand():
    net = net_of(nn.Identity(), head=averaging([[1.0, -1.0], [-2.0, 1.0], [-1.0, -1.0]], bias=3.0))
    image = torch.tensor([[[[4.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 0.0]]]])
    # Class 0: 4 - 0, 1 - 3, 0 - 1, 2 - 0. Class 1: -8 + 0, -2 + 3, 0 + 1, -4 + 0. Class 2: all negative.
    assert grad_cam(net, image, 0, 0).tolist() == [[[1.0, 0.0], [0.0, 0.5]]]
    assert grad_cam(net, image, 0, 1).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]
    assert grad_cam(net, image, 0, 2).eq(0).all()


def test_hires_cam_keeps_places_that_grad_cam_averages():
    net = net_of(nn.Identity(), head=nn.Sequential(nn.Flatten(), linear([[2.0, -1.0, 1.0, 0.0]])))
    image = torch.tensor([[[[1.0, 1.0], [4.0, 2.0]]]])
    assert hires_cam(net, image, 0, 0).tolist() == [[[0.5, 0.0], [1.0, 0.0]]]
    assert grad_cam(net, image, 0, 0).tolist() == [[[0.25, 0.25], [1.0, 0.5]]]  # all weighed by 0.5


def test_grad_cam_looks_before_the_pooling_that_ends_a_unit():
    net = net_of(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), head=averaging([[1.0]]))
    image = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]])
    assert grad_cam(net, image, 0, 0).tolist() == [[[0.0, 1.0], [0.5, 0.0]]]
    assert hires_cam(net, image, 0, 0).tolist() == [[[0.0, 1.0], [0.0, 0.0]]]  # only the maximum counts


def test_guided_backprop_by_hand():
    conv = nn.Conv2d(1, 3, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1)
    net = net_of(conv, nn.ReLU(inplace=True), head=nn.Sequential(nn.Flatten(), linear([[2.0, -3.0, 5.0]])))
    # The plain gradient is 2 - 3 = -1; the third path is off on the way up, the second negative on the way down.
    assert guided_backprop(net, torch.ones(1, 1, 1, 1), 0, 0).tolist() == [[[[2.0]]]]


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


@each_network
def test_grad_cam_agrees_with_its_definition_at_every_exit(name):
    net, images = network(name), pictures(2)
    for index, (unit, head) in enumerate(zip(net.exit_after, net.exits.values(), strict=True)):
        *before, last = net.units[: unit + 1]
        layers = [*before, *(last if isinstance(last, nn.Sequential) else [last])]
        if isinstance(layers[-1], nn.MaxPool2d):
            head = nn.Sequential(layers.pop(), head)
        feature = nn.Sequential(*layers)(images).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(logit_sum(head(feature.clone())), feature)
        expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1, keepdim=True).relu()
        expected = F.interpolate(expected, (32, 32), mode="bilinear")[:, 0]
        expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
        torch.testing.assert_close(grad_cam(net, images, index), expected, atol=1e-4, rtol=1e-4)


@each_network
def test_guided_backprop_agrees_with_its_definition_at_every_exit(name, monkeypatch):
    net, images = network(name), pictures(2)
    ours = [guided_backprop(net, images, index) for index in range(net.num_exits)]
    monkeypatch.setattr(nn.ReLU, "forward", lambda _, x: GuidedRelu.apply(x))
    pixels = images.clone().requires_grad_()
    for mine, logits in zip(ours, net(pixels), strict=True):
        (expected,) = torch.autograd.grad(logit_sum(logits), pixels, retain_graph=True)
        assert expected.abs().max() > 0
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)


def test_explain_combines_the_maps():
    net, images = network("resnet18_3exits"), pictures(3)
    found = explain(net, images, 2)
    logits = net(images)[2]
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert torch.equal(found.predicted, logits.argmax(1))
    assert torch.equal(found.cam, hires_cam(net, images, 2))
    assert torch.equal(found.guided_cam, guided_backprop(net, images, 2) * found.cam[:, None])
    assert explain(net, images[:0], 2).guided_cam.shape == (0, 3, 32, 32)


@each_way_in
def test_gradcam_explains_the_predicted_class_unless_another_is_given(method):
    net, images = network("resnet18_3exits"), pictures(3)
    predicted = net(images)[1].argmax(1)
    default = method(net, images, 1)
    assert torch.equal(default, method(net, images, 1, predicted.tolist()))
    other = (predicted + 1) % 10
    mixed = method(net, images, 1, torch.stack([predicted[0], other[1], predicted[2]]))
    assert torch.equal(mixed[[0, 2]], default[[0, 2]])
    assert torch.equal(method(net, images, 1, int(other[1]))[1], mixed[1])
    assert not torch.equal(mixed[1], default[1])


def state_of(net: MultiExitNet) -> list:
    modules = [(each.training, getattr(each, "inplace", None), len(each._forward_hooks)) for each in net.modules()]
    parameters = [(parameter.requires_grad, parameter.grad.numpy().tobytes()) for parameter in net.parameters()]
    return [modules, parameters, {key: tensor.numpy().tobytes() for key, tensor in net.state_dict().items()}]


@pytest.mark.parametrize("target", [None, 10], ids=["fine", "an error"])
@each_way_in
def test_gradcam_leaves_network_and_images_as_they_were(method, target):
    net, images = network("vgg16_sdn").train(), pictures(2).requires_grad_()
    net.units[1].eval()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    given, before = images.detach().clone(), state_of(net)
    with nullcontext() if target is None else pytest.raises(ValueError, match="10"):
        assert not method(net, images, 1, target).requires_grad
    assert state_of(net) == before
    assert torch.equal(images, given)
    assert images.grad is None


@each_way_in
def test_gradcam_is_the_same_in_training_mode_frozen_and_in_inference_mode(method):
    net, images = network("wideresnet32_4_sdn"), pictures(2)
    expected = method(net, images, 6)
    assert torch.equal(method(net.train(), images, 6), expected)  # no dropout, no statistics of the batch
    with torch.inference_mode():
        assert torch.equal(method(net.requires_grad_(False), images.clone(), 6), expected)


@pytest.mark.parametrize("target", [10, -1, [0, 12], [0], True, torch.tensor([0.0, 1.0])], ids=str)
def test_gradcam_refuses_other_classes(target):
    with pytest.raises(ValueError, match="target"):
        grad_cam(network("resnet18_3exits"), pictures(2), 1, target)


@each_way_in
def test_gradcam_refuses_other_images_exits_and_features(method):
    net = network("resnet18_3exits")
    for images, exit_index in ((torch.zeros(2, 1, 32, 32), 1), (torch.zeros(2, 3, 32, 32), -1)):
        with pytest.raises(ValueError, match="1"):
            method(net, images, exit_index)
    flat = net_of(nn.Conv2d(3, 3, 1), nn.AvgPool2d(4), head=nn.Flatten())
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 1\)"):
        grad_cam(flat, torch.randn(2, 3, 4, 4), 0)


def test_guided_backprop_refuses_relu_functions():
    net = net_of(nn.Conv2d(3, 4, 1), nn.ReLU(), Applies(lambda x: F.relu(x - 0.1)), head=create_exit("avg", 4, 10))
    with pytest.raises(ValueError, match="1 functions"):
        guided_backprop(net, pictures(1), 0)
    assert grad_cam(net, pictures(1), 0).shape == (1, 32, 32)


def in_the_middle(value: float) -> Tensor:
    """8x8 zeros, `value` in the 16 pixels in the middle."""
    return F.pad(torch.full((1, 4, 4), value), (2, 2, 2, 2))


def test_central_share_and_map_spread_by_hand():
    corner = torch.zeros(1, 8, 8)
    corner[0, 0, 0] = 1.0
    maps = torch.cat([torch.ones(1, 8, 8), in_the_middle(2.0), corner, corner + in_the_middle(1 / 16), 0 * corner])
    assert central_share(maps).tolist() == pytest.approx([0.25, 1.0, 0.0, 0.5, torch.nan], nan_ok=True)
    assert map_spread(maps[[0, 1, 4]]).tolist() == pytest.approx([1.0, 0.25, torch.nan], nan_ok=True)


def test_map_correlation_by_hand():
    maps = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    others = torch.stack([3 * maps[0] + 1, 1 - maps[0], torch.full((8, 8), 0.1), torch.rand(8, 8)])
    found = map_correlation(maps, others)
    assert found[:2].tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    assert found[2].isnan()
    assert found[3] == pytest.approx(float(torch.corrcoef(torch.stack([maps[3].flatten(), others[3].flatten()]))[0, 1]))
