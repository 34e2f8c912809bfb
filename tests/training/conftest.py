from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eeutils import MultiExitNet, TrainConfig, data_from_tensors, with_internal_classifiers
from eeutils.data import Augmentation, ImageData
from eeutils.models import resnet18_3exits, wideresnet32_4
from eeutils.training import History, loop

TIMES = ["images_per_second", "seconds"]


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    """160 images of 8 x 8 pixels in four classes, told apart by where they are bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    images = torch.randint(0, 100, (160, 3, 2, 4, 2, 4), generator=generator, dtype=torch.uint8)
    images[torch.arange(160), :, labels // 2, :, labels % 2] += 120
    return data_from_tensors(images.reshape(160, 3, 8, 8), labels, ("a", "b", "c", "d"), name="tiny")


@pytest.fixture
def tiny_net() -> Callable[..., MultiExitNet]:
    """A network for `tiny_data`, always with the same first weights."""

    def build(**kwargs) -> MultiExitNet:
        torch.manual_seed(0)
        return resnet18_3exits(**{"width": 2, "num_classes": 4, "pool": "spp", **kwargs})

    return build


@pytest.fixture
def dropout_net() -> Callable[[], MultiExitNet]:
    """A network for `tiny_data` with norms, dropout and two internal classifiers."""

    def build() -> MultiExitNet:
        torch.manual_seed(0)
        net = wideresnet32_4(width=1, num_classes=4, image_size=8)
        return with_internal_classifiers(net, (3, 8, 8), after=(2, 4))

    return build


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """A recipe for `tiny_data`: 7 steps an epoch."""

    def build(**kwargs) -> TrainConfig:
        quiet = Augmentation(flip=False, translate=1, cutout=2)
        return TrainConfig(**{"epochs": 3, "batch_size": 16, "augmentation": quiet, **kwargs})

    return build


@pytest.fixture
def results() -> Callable[[History], dict]:
    """The history without what depends on the clock."""
    return lambda history: history.frame().drop(columns=TIMES).to_dict()
