"""Datasets by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eeutils.data import cifar
from eeutils.data.own import data_from_tensors
from eeutils.data.splits import ImageData
from eeutils.data.tinyimagenet import load_tinyimagenet
from eeutils.fields import check_choice


def load_digits_data() -> ImageData:
    """Load scikit-learn's digits as RGB images of 32 x 32 pixels: 1,258 to train, 180 to validate, 359 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, size=32, mode="bilinear").round().byte().expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    return data_from_tensors(images, labels, tuple(map(str, range(10))), name="digits")


@dataclass(frozen=True)
class Dataset:
    """A dataset that is not loaded yet."""

    load: Callable[[], ImageData]
    num_classes: int
    image_shape: tuple[int, int, int]  # (C, H, W)


_DATASETS = {
    "cifar10": Dataset(lambda: cifar.load_cifar(cifar.CIFAR10), 10, (3, 32, 32)),
    "cifar100": Dataset(lambda: cifar.load_cifar(cifar.CIFAR100), 100, (3, 32, 32)),
    "digits": Dataset(load_digits_data, 10, (3, 32, 32)),
    "tinyimagenet": Dataset(load_tinyimagenet, 200, (3, 64, 64)),
}


def list_data() -> list[str]:
    """Return the names that `load_data` knows."""
    return sorted(_DATASETS)


def find_dataset(name: str) -> Dataset:
    """Return the dataset `name`, one of `list_data()`."""
    check_choice("name", name, list_data())
    return _DATASETS[name]


def load_data(name: str) -> ImageData:
    """Load the dataset `name`, one of `list_data()`, into memory, verified.

    Raises:
        DataUnavailableError: if no source delivers; the message lists what was tried and what to do by hand.
        StorageError: if the cache cannot be written.
    """
    return find_dataset(name).load()
