"""Datasets by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from eeutils.data.augmentation import Normalization
from eeutils.data.cifar import load_cifar10, load_cifar100
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
class _Dataset:
    load: Callable[[], ImageData]
    num_classes: int
    image_shape: tuple[int, int, int]


_DATASETS = {
    "cifar10": _Dataset(load_cifar10, 10, (3, 32, 32)),
    "cifar100": _Dataset(load_cifar100, 100, (3, 32, 32)),
    "digits": _Dataset(load_digits_data, 10, (3, 32, 32)),
    "tinyimagenet": _Dataset(load_tinyimagenet, 200, (3, 64, 64)),
}


def list_data() -> list[str]:
    """Return the names that `load_data` knows."""
    return sorted(_DATASETS)


def load_data(name: str, *, normalization: Normalization | None = None) -> ImageData:
    """Load the dataset `name`, one of `list_data()`, into memory, verified.

    `normalization` is by default the dataset's own; for trained weights, give the one they were trained with.

    Raises:
        DataUnavailableError: if no source delivers; the message lists what was tried and what to do by hand.
        StorageError: if the cache cannot be written.
    """
    data = _named(name).load()
    if normalization is None:
        return data
    splits = (replace(split, normalization=normalization) for split in (data.train, data.val, data.test))
    return ImageData(data.name, *splits)


def image_shape_of(name: str) -> tuple[int, int, int]:
    """Return (C, H, W) of a dataset's images, without loading it."""
    return _named(name).image_shape


def num_classes_of(name: str) -> int:
    """Return the number of classes of a dataset, without loading it."""
    return _named(name).num_classes


def _named(name: str) -> _Dataset:
    check_choice("name", name, list_data())
    return _DATASETS[name]
