"""Data sets by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eeutils.data.cifar import load_cifar10, load_cifar100
from eeutils.data.own import data_from_tensors
from eeutils.data.splits import ImageData
from eeutils.data.tinyimagenet import load_tinyimagenet


def load_digits_data() -> ImageData:
    """Digits as three-channel images of 32 x 32 pixels: 1,258 to train on, 180 to validate, 359 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, size=32, mode="bilinear").round().byte().expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    return data_from_tensors(images, labels, tuple(map(str, range(10))), name="digits")


@dataclass(frozen=True)
class _DataSet:
    load: Callable[[], ImageData]
    num_classes: int
    image_shape: tuple[int, int, int]


_DATA_SETS = {
    "cifar10": _DataSet(load_cifar10, 10, (3, 32, 32)),
    "cifar100": _DataSet(load_cifar100, 100, (3, 32, 32)),
    "digits": _DataSet(load_digits_data, 10, (3, 32, 32)),
    "tinyimagenet": _DataSet(load_tinyimagenet, 200, (3, 64, 64)),
}


def list_data() -> list[str]:
    """The names that `load_data` knows."""
    return sorted(_DATA_SETS)


def load_data(name: str) -> ImageData:
    """A data set by name, verified, in memory.

    Raises:
        ValueError: if the name is not one of `list_data()`.
        DataUnavailableError: if it is nowhere to be had; the message says what was tried and what to do by hand.
        StorageError: if the cache cannot be written.
    """
    return _named(name).load()


def image_shape_of(name: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, without loading it.

    Raises:
        ValueError: if the name is not one of `list_data()`.
    """
    return _named(name).image_shape


def num_classes_of(name: str) -> int:
    """How many classes a data set has, without loading it.

    Raises:
        ValueError: if the name is not one of `list_data()`.
    """
    return _named(name).num_classes


def _named(name: str) -> _DataSet:
    if name not in _DATA_SETS:
        raise ValueError(f"unknown data set {name!r}; choose from {list_data()}")
    return _DATA_SETS[name]
