"""Data sets by name."""

from collections.abc import Callable

from eeutils.data.cifar import load_cifar10, load_cifar100
from eeutils.data.digits import load_digits_data
from eeutils.data.splits import ImageData
from eeutils.data.tinyimagenet import load_tinyimagenet

_LOADERS: dict[str, Callable[[], ImageData]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits_data,
    "tinyimagenet": load_tinyimagenet,
}


def list_data() -> list[str]:
    """The names that `load_data` knows."""
    return sorted(_LOADERS)


def load_data(name: str) -> ImageData:
    """A data set by name, verified, in memory.

    Raises:
        ValueError: if the name is not one of `list_data()`.
        DataUnavailableError: if it is nowhere to be had; the message says what was tried and what to do by hand.
        StorageError: if the cache cannot be written.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; choose from {list_data()}")
    return _LOADERS[name]()
