import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

from eeutils import Cascade, decide, predict, with_exits
from eeutils.analysis import measure_costs
from eeutils.models import Origin, prepared_for_inference, stage_modules
from eeutils.models.adapt import rebuild
from tests.toys import assert_same_answers, dividing, random_split, unchanged

SIZE = 32


def resnet() -> nn.Module:
    return tv.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def densenet() -> nn.Module:
    return tv.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5)


def inception(**kwargs) -> nn.Module:
    return tv.Inception3(num_classes=5, init_weights=False, **kwargs)


def swin() -> nn.Module:
    return tv.SwinTransformer([4, 4], 8, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=5)


def vit(**kwargs) -> nn.Module:
    return tv.VisionTransformer(SIZE, 8, 3, 2, 16, 32, num_classes=5, **kwargs)


def mobilenet_v3() -> nn.Module:
    blocks = [(8, 3, 8, 8, True, "RE", 2, 1), (8, 3, 16, 16, True, "HS", 2, 1), (16, 3, 32, 16, False, "HS", 1, 1)]
    return tv.MobileNetV3([InvertedResidualConfig(*block, width_mult=1) for block in blocks], 16, num_classes=5)


def timm() -> Any:
    return pytest.importorskip("timm.models")


def timms(name: str, **kwargs) -> nn.Module:
    return timm().create_model(name, num_classes=5, **kwargs)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Sequence[str], int]] = {
    "convnext": (
        lambda: tv.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        ("features.1", "features.2"),
        SIZE,
    ),
    "densenet": (densenet, ("features.denseblock1.denselayer1", "features.denseblock2"), SIZE),
    "efficientnet": (
        lambda: tv.EfficientNet([MBConvConfig(2, 3, 1, 8, 8, 2), MBConvConfig(2, 3, 2, 8, 16, 2)], 0.2, num_classes=5),
        ("features.1", "features.2.0.block.0"),
        SIZE,
    ),
    "googlenet": (lambda: tv.GoogLeNet(5, init_weights=False), ("inception3a", "inception4c.branch2"), 64),
    "inception_v3": (inception, ("Mixed_5c", "Mixed_6c"), 75),
    "maxvit": (
        lambda: tv.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 8, 0.1, num_classes=5),
        ("blocks.0", "blocks.1.layers.0.layers.MBconv"),
        64,
    ),
    "mobilenet_v3": (mobilenet_v3, ("features.1", "features.3"), SIZE),
    "resnet": (resnet, ("layer1.0.conv1", "layer3"), SIZE),
    "shufflenet": (lambda: tv.ShuffleNetV2([1, 1, 1], [8, 16, 16, 16, 16], num_classes=5), ("stage2", "stage3"), SIZE),
    "swin": (swin, ("features.1", "features.3"), SIZE),
    "vit": (vit, ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"), SIZE),
    "timm_coatnet": (lambda: timms("test_coatnet"), ("stages.0", "stages.2"), 160),
    "timm_crossvit": (
        lambda: timms("crossvit_tiny_240", embed_dim=(16, 32), depth=((1, 1, 0), (1, 1, 0)), num_heads=(2, 2)),
        ("blocks.0[0]",),
        240,
    ),
    "timm_efficientnet": (lambda: timms("test_efficientnet"), ("blocks.1", "blocks.3"), SIZE),
    "timm_mambaout": (lambda: timms("test_mambaout"), ("stages.1", "stages.2"), SIZE),
    "timm_mixer": (lambda: timm().MlpMixer(5, img_size=64, num_blocks=3, embed_dim=24), ("blocks.0", "blocks.1"), 64),
    "timm_nfnet": (lambda: timms("test_nfnet"), ("stages.1", "stages.2"), SIZE),
    "timm_resnet": (lambda: timms("test_resnet"), ("layer2", "layer3.0.bn1"), SIZE),
    "timm_vit": (lambda: timms("test_vit", img_size=SIZE), ("blocks.1", "blocks.3"), SIZE),
    "timm_vit_registers": (lambda: timms("test_vit3"), ("blocks.1", "blocks.3"), 160),
}


def random_images(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_with_exits_answers_and_costs_as_the_network_does(name):
    build, after, size = ARCHITECTURES[name]
    network = build().eval()
    with unchanged(network):
        net, images = with_exits(network, after, image_size=size), random_images(size=size)
        ready = prepared_for_inference(net)
    assert [tuple(answer.shape) for answer in net(images)] == [(2, 5)] * (len(after) + 1)
    assert torch.equal(net(images)[-1], network(images))
    costs = measure_costs(net, (3, size, size))
    with FlopCounterMode(display=False) as counter:
        deepcopy(network).requires_grad_(False).to("meta")(torch.empty(1, 3, size, size, device="meta"))
    assert float(costs.unit_macs.sum() + costs.exit_macs[-1]) == counter.get_total_flops() / 2
    torch.testing.assert_close(ready(images), net(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["densenet", "swin", "timm_resnet"])
def test_with_exits_makes_cascades_that_equal_the_table(name):
    build, after, size = ARCHITECTURES[name]
    net, split = with_exits(build(), after, image_size=size, pool="mixed"), random_split(40, size, num_classes=5)
    table = predict(prepared_for_inference(net), split, batch_size=7)
    expected = decide(table, dividing(table))
    assert len(expected.exit_index.unique()) > 1
    assert_same_answers(Cascade(net, dividing(table)).run(split, batch_size=7), expected)


def test_with_exits_reads_what_torchvision_extracts_by_node_name():
    network, images = resnet().eval(), random_images()
    for name in get_graph_node_names(network)[1][1:-1:3]:
        net = with_exits(network, [name], image_size=SIZE)
        expected = create_feature_extractor(network, [name])(images)[name]
        features = net.units[0](images)
        assert torch.equal(features if isinstance(features, Tensor) else features[0], expected), name
        assert torch.equal(net(images)[-1], network(images)), name


@pytest.mark.parametrize(
    ("after", "value"), [(["layer22"], "layer2"), (["layer1", "layer1.0"], "layer1.0"), (["fc"], "fc"), ([], "[]")]
)
def test_with_exits_refuses_names_that_cannot_get_one(after, value):
    with pytest.raises(ValueError, match="after") as error:
        with_exits(resnet(), after, image_size=SIZE)
    assert value in str(error.value)


class Own(nn.Module):
    """A network of which each test has its own body."""

    def __init__(self, body: Callable[["Own", Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.body(self, x)
        return self.fc(x if scale is None else x * scale)


def counted(own: Own, x: Tensor) -> Tensor:
    num_images, _, height, width = x.shape
    return own.second(own.first(x)).reshape(num_images, -1, height * width).mean(2)


def in_windows(own: Own, x: Tensor) -> Tensor:
    x = own.first(x).unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1)
    return own.second(x).mean((2, 3)).unflatten(0, (-1, 4)).mean(1)


def dropped(own: Own, x: Tensor) -> Tensor:
    return F.dropout(own.second(own.first(x)).mean((2, 3)), training=own.training)


def noisy_in_training(own: Own, x: Tensor) -> Tensor:
    return F.dropout(own.second(own.first(x)).mean((2, 3)), 0.5 if own.training else 0.0)


def doubled_in_training(own: Own, x: Tensor) -> Tensor:
    return own.second(own.first(x)).mean((2, 3)) * (2 if own.training else 1)


def looking_at_values(own: Own, x: Tensor) -> Tensor:
    return own.second(own.first(x)).mean((2, 3)) if x.sum() > 0 else x.mean((2, 3))


def test_with_exits_follows_a_batch_that_shrinks():
    net = with_exits(Own(counted).eval(), ["first"], image_size=8)
    first, last = stage_modules(net)
    images = random_images(3, 8)
    features, _ = first(images)
    assert torch.allclose(last(tuple(each[:1] for each in features))[1], net(images[:1])[-1])


def test_with_exits_lets_functional_dropout_follow_the_mode():
    net, images = with_exits(Own(dropped), ["first"], image_size=8), random_images(4, 8)
    assert not torch.equal(net(images)[-1], net(images)[-1])
    ready = prepared_for_inference(net)
    assert torch.equal(ready(images)[-1], ready(images)[-1])


@pytest.mark.parametrize("body", [doubled_in_training, noisy_in_training, looking_at_values])
def test_with_exits_refuses_networks_whose_steps_vary_and_windows_that_cross_a_cut(body):
    with pytest.raises(ValueError, match="Own"):
        with_exits(Own(body), ["first"], image_size=8)
    with pytest.raises(ValueError, match="second"):
        with_exits(Own(in_windows), ["second"], image_size=8)


def test_with_exits_leaves_auxiliary_classifiers_out():
    network = tv.GoogLeNet(5, init_weights=False).train()
    net = with_exits(network, ["conv2"], image_size=75)
    with unchanged(network):
        assert [tuple(answer.shape) for answer in net(random_images(2, 75))] == [(2, 5)] * 2
    assert net.training
    assert not any("aux" in name.lower() for name, _ in net.named_parameters())


def channels_last(own: Own, x: Tensor) -> Tensor:
    x = own.first(x).permute(0, 2, 3, 1).contiguous()
    return own.second(x.permute(0, 3, 1, 2)).flatten(1).unflatten(1, (8, 8 * 8)).mean(2)


def test_with_exits_asks_for_layouts_that_shapes_do_not_tell():
    with pytest.raises(ValueError, match="layout"):
        with_exits(Own(channels_last), ["contiguous"], image_size=8)
    net = with_exits(Own(channels_last), ["contiguous"], image_size=8, layout="NHWC")
    features = net.forward_features(random_images(2, 8))[0]
    assert torch.equal(net.exits["0"][0](features), features.permute(0, 3, 1, 2))
    for layout in ("NLC", "HWC"):
        with pytest.raises(ValueError, match=layout):
            with_exits(Own(channels_last), ["contiguous"], image_size=8, layout=layout)


REBUILT = {
    "shufflenet_v2_x0_5": (lambda: tv.shufflenet_v2_x0_5(num_classes=5), ["stage2"], SIZE),
    "test_resnet": (lambda: timms("test_resnet", in_chans=1), ["layer3", "layer2"], SIZE),
    "test_vit": (lambda: timms("test_vit", img_size=SIZE), ["blocks.1"], SIZE),
}


@pytest.mark.parametrize("name", REBUILT)
@torch.no_grad()
def test_rebuild_makes_the_same_network(name):
    build, after, size = REBUILT[name]
    network = build().eval()
    channels = next(network.parameters()).shape[1] if name == "test_resnet" else 3
    net = with_exits(network, after, image_size=size, pool="mixed", in_channels=channels)
    origin = Origin(**json.loads(json.dumps(asdict(net.origin))))
    assert (origin.name, origin.library, origin == net.origin) == (name, type(network).__module__.split(".")[0], True)
    again = rebuild(origin).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, channels, size, size)
    assert all(map(torch.equal, again(images), net(images)))


def test_with_exits_recognises_large_networks_without_their_weights():
    with torch.device("meta"):
        network = tv.vit_b_32(num_classes=5)
    origin = with_exits(network, ["encoder.layers.encoder_layer_1"], layout="NLC").origin
    assert (origin.name, origin.arguments) == ("vit_b_32", {"num_classes": 5, "image_size": 224})
    assert with_exits(resnet(), ["layer2"], image_size=SIZE).origin is None


@pytest.mark.parametrize(
    "origin", [Origin("timm", "hf-hub:me/resnet", {}, {}), Origin("timm", "test_resnet", {"pretrained": True}, {})]
)
def test_rebuild_refuses_what_no_library_builds(origin):
    timm()
    with pytest.raises(ValueError, match=next(iter(origin.arguments), origin.name)):
        rebuild(origin)
