"""Networks cut by the names of layers, in everything that takes a network with exits."""

import runpy

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from eeutils import Classifier, MultiExitNet, ThresholdPolicy, data_from_tensors, fit, recipe, with_exits
from eeutils.analysis import grad_cam
from eeutils.data import ImageData
from eeutils.models.multiexit import Features
from tests.toys import changed, weights

SIZE = 32
CLASSES = ("dark", "middle", "bright")


def densenet() -> MultiExitNet:
    """Cut within a block: units hand on tuples."""
    network = tv.DenseNet(4, (2, 2, 2, 2), 8, num_classes=3)
    return with_exits(network, ["features.denseblock1.denselayer1", "features.denseblock2"], image_size=SIZE)


def swin() -> MultiExitNet:
    network = tv.SwinTransformer([4, 4], 16, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=3)
    return with_exits(network, ["features.1", "features.3"], image_size=SIZE)


def vit() -> MultiExitNet:
    network = tv.VisionTransformer(SIZE, 8, 3, 2, 16, 32, num_classes=3)
    return with_exits(network, [f"encoder.layers.encoder_layer_{index}" for index in (0, 1)], image_size=SIZE)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Images of three levels of grey."""
    labels = torch.arange(120) % 3
    noise = torch.randint(0, 80, (120, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return data_from_tensors((noise + 80 * labels[:, None, None, None]).byte(), labels, CLASSES)


def test_fit_trains_exits_and_leaves_the_frozen_network_as_it_was(data):
    net = densenet()
    before = weights(net)
    fit(net, data, recipe("ic_only", trained="exits", epochs=1, batch_size=40), progress=False)
    assert {name.split(".")[0] for name in changed(net, before)} == {"exits"}


class ChannelsLast(nn.Module):
    """Ends in a map (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.first(x).permute(0, 2, 3, 1)).square().mean((1, 2)))


def as_map(features: Features) -> Tensor:
    """(N, C, H, W)"""
    features = features if isinstance(features, Tensor) else features[0]
    if features.ndim == 3:
        return features[:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # without the class token
    return features if features.shape[3] == features.shape[2] else features.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("build", "exit_index"),
    [(densenet, 0), (swin, 0), (vit, 0), (lambda: with_exits(ChannelsLast(), ["first"], image_size=SIZE), 1)],
)
def test_grad_cam_reads_maps_of_every_layout(build, exit_index, data):
    net, images = build().eval(), data.normalization(data.test.images[:2])
    features = net.forward_features(images)[exit_index]
    first = (features if isinstance(features, Tensor) else features[0]).detach().requires_grad_()
    logits = list(net.exits.values())[exit_index](first if isinstance(features, Tensor) else (first, *features[1:]))
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), first)
    small = (as_map(first) * as_map(gradient).mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    expected = nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear")[:, 0].detach()
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(grad_cam(net, images, exit_index), expected, rtol=1e-3, atol=1e-4)


def test_export_takes_units_that_hand_on_tuples(data, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from eeutils import export

    monkeypatch.setattr(export, "_single_file", lambda *args: None)  # a minute
    policy = ThresholdPolicy((0.38, 0.4))
    classifier = Classifier(densenet(), CLASSES, data.normalization, policy, image_shape=data.image_shape)
    export.export(classifier, tmp_path / "out")
    answer = runpy.run_path(str(tmp_path / "out" / "run.py"))["Cascade"](tmp_path / "out")
    logits, _ = answer(data.test.images.numpy())
    assert np.allclose(logits, classifier(data.test.images).logits, atol=1e-3)
