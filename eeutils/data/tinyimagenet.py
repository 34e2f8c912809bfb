"""Tiny ImageNet: 100,000 + 10,000 colour images of 64 x 64 pixels in 200 classes of ImageNet (Stanford's CS231n).

The labels of its test images are secret, so its validation images are the test split, as in Shallow-Deep Networks, and
validation is held out of the training images. The user's files are read where they lie; none is moved.
"""

import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import (
    Content,
    RawData,
    as_bytes,
    as_names,
    cached_data,
    check_md5,
    download,
    local_folders,
    progress_bar,
)
from eeutils.data.splits import ImageData, split_data
from eeutils.data.trees import FileTree, folder_tree, zip_tree
from eeutils.errors import IntegrityError, a_few
from eeutils.sources import Source

FOLDER = "tiny-imagenet-200"
# The values in general use: the channels' mean and standard deviation over the training images.
NORMALIZATION = Normalization(mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821))
_IMAGES_A_TASK = 64


@dataclass(frozen=True)
class TinyImageNetArchive:
    """The official archive.

    Attributes:
        url: its address.
        md5: of the zip, in hexadecimal.
        archive_size: of the zip, in bytes; for the progress bar.
        image_size: pixels a side.
        num_classes: lines of `wnids.txt`, and folders in `train`.
        train_per_class: images in each of these.
        num_test: lines of `val/val_annotations.txt`, and images beside it.
        validation_size: training images that are held out.
    """

    url: str = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: str = "90528d7ca1a48142e341f4ef8d21d0de"
    archive_size: int = 248_100_043
    image_size: int = 64
    num_classes: int = 200
    train_per_class: int = 500
    num_test: int = 10_000
    validation_size: int = 10_000

    @property
    def content(self) -> dict[str, Content]:
        """What the decoded data set is; decoders of JPEG differ in last bits, so there is no hash to expect."""
        image, num_train = (3, self.image_size, self.image_size), self.num_classes * self.train_per_class
        return {
            "train_images": Content((num_train, *image), None),
            "train_labels": Content((num_train,), None),
            "test_images": Content((self.num_test, *image), None),
            "test_labels": Content((self.num_test,), None),
            "class_names": Content((None,), None),
        }


TINY_IMAGENET = TinyImageNetArchive()


def load_tinyimagenet() -> ImageData:
    """Tiny ImageNet with 90,000 training, 10,000 validation (stratified, seeded) and 10,000 test images.

    The first time all images are decoded, which takes about a minute; after that they come out of one file of 1.4 GB.
    """
    archive = TINY_IMAGENET
    raw = cached_data("tinyimagenet", archive.content, tinyimagenet_sources(archive))
    return split_data("tinyimagenet", raw, as_names(raw["class_names"]), NORMALIZATION, archive.validation_size)


def tinyimagenet_sources(archive: TinyImageNetArchive) -> list[Source]:
    """Local copies first, unpacked or as they were downloaded; then the official site."""
    by_hand = f"download {archive.url} by hand and name the folder that holds it in EEUTILS_DATA"
    local = [
        source
        for folder in local_folders()
        for source in (
            Source(
                name=f"folder {FOLDER} in {folder}",
                fetch=lambda folder=folder: read_folder(folder / FOLDER, archive),
                remedy=f"unpack {FOLDER}.zip in {folder} once more, in full, or set EEUTILS_DATA to where it is",
            ),
            Source(
                name=f"{FOLDER}.zip in {folder}",
                fetch=lambda folder=folder: read_zip(folder / f"{FOLDER}.zip", archive),
                remedy=by_hand,
            ),
        )
    ]
    return [*local, Source(name="official site", fetch=lambda: fetch_official_site(archive), remedy=by_hand)]


def read_folder(folder: Path, archive: TinyImageNetArchive = TINY_IMAGENET) -> RawData:
    """The data from the unpacked archive, the folder `tiny-imagenet-200`.

    There are no hashes of its files to go by: names, numbers and sizes are checked, not what the images show.

    Raises:
        FileNotFoundError: if there is no such folder.
        IntegrityError: if a class, an image or a list is missing or not what it should be; the message names it.
    """
    return read_tree(folder_tree(folder), archive)


def read_zip(path: Path, archive: TinyImageNetArchive = TINY_IMAGENET) -> RawData:
    """The data from the archive as it was downloaded; nothing is unpacked.

    Raises:
        FileNotFoundError: if there is no such file.
        IntegrityError: if it is not the official archive.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_md5(path, archive.md5)
    with zip_tree(path, FOLDER) as tree:
        return read_tree(tree, archive)


def fetch_official_site(archive: TinyImageNetArchive = TINY_IMAGENET, *, timeout_s: float = 60.0) -> RawData:
    """The data from the official address, downloaded into a temporary folder.

    Args:
        archive: what to expect there.
        timeout_s: how long the site may be silent, in seconds; the download as a whole may take long.

    Raises:
        OSError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if what it sends is not the archive.
    """
    with tempfile.TemporaryDirectory(prefix="eeutils-tinyimagenet-") as folder:
        path = Path(folder, f"{FOLDER}.zip")
        size = archive.archive_size
        download(archive.url, path, md5=archive.md5, size=size, title="Tiny ImageNet", timeout_s=timeout_s)
        return read_zip(path, archive)


def read_tree(tree: FileTree, archive: TinyImageNetArchive) -> RawData:
    """The data from the archive's files.

    Raises:
        IntegrityError: if a class, an image or a list is missing or not what it should be; the message names it.
    """
    ids = _class_ids(tree, archive)
    train = [f"train/{each}/images/{each}_{number}.JPEG" for each in ids for number in range(archive.train_per_class)]
    test = _annotations(tree, ids, archive)
    _check_complete(tree, ids, [*train, *test])
    return {
        "train_images": _decoded(tree, train, archive.image_size, "training"),
        "train_labels": torch.arange(len(ids), dtype=torch.uint8).repeat_interleave(archive.train_per_class),
        "test_images": _decoded(tree, list(test), archive.image_size, "test"),
        "test_labels": torch.tensor(list(test.values()), dtype=torch.uint8),
        "class_names": as_bytes(_class_names(tree, ids)),
    }


def _class_ids(tree: FileTree, archive: TinyImageNetArchive) -> list[str]:
    """WordNet's number of each class, in alphabetical order."""
    ids = sorted(set(tree.text("wnids.txt").split()))
    if len(ids) != archive.num_classes:
        raise IntegrityError(f"wnids.txt in {tree.where} lists {len(ids)} classes, expected {archive.num_classes}")
    return ids


def _class_names(tree: FileTree, ids: Sequence[str]) -> list[str]:
    """The first of the names that `words.txt` has for a class; all of them where two classes share the first."""
    words = dict(line.split("\t", 1) for line in tree.text("words.txt").splitlines() if "\t" in line)
    unnamed = [each for each in ids if not words.get(each, "").strip()]
    if unnamed:
        raise IntegrityError(f"words.txt in {tree.where} has no name for {a_few(unnamed)}")
    short = {each: words[each].split(",")[0].strip() for each in ids}
    shared = Counter(short.values())
    return [short[each] if shared[short[each]] == 1 else words[each].strip() for each in ids]


def _annotations(tree: FileTree, ids: Sequence[str], archive: TinyImageNetArchive) -> dict[str, int]:
    """The images of the test split, in the order of `val_annotations.txt`, and the class of each."""
    file = "val/val_annotations.txt"
    rows = [line.split("\t") for line in tree.text(file).splitlines() if line.strip()]
    classes = {each: number for number, each in enumerate(ids)}
    unknown = [row for row in rows if len(row) < 2 or row[1].strip() not in classes]
    if unknown:
        raise IntegrityError(f"{file} in {tree.where} names no known class for {a_few([row[0] for row in unknown])}")
    found = {f"val/images/{row[0]}": classes[row[1].strip()] for row in rows}
    if len(found) != archive.num_test:
        raise IntegrityError(f"{file} in {tree.where} lists {len(found)} images, expected {archive.num_test}")
    return found


def _check_complete(tree: FileTree, ids: Sequence[str], images: Sequence[str]) -> None:
    """See that every image is there; of a class that is missing as a whole, name the folder."""
    present = {name.split("/")[1] for name in tree.names if name.startswith("train/")}
    folders = [f"train/{each}" for each in ids if each not in present]
    missing = [name for name in images if name not in tree.names and name.rsplit("/", 2)[0] not in folders]
    lacks = [
        f"{len(each)} {what} ({a_few(each)})"
        for each, what in ((folders, "class folders"), (missing, "images"))
        if each
    ]
    if lacks:
        raise IntegrityError(f"{tree.where} is incomplete: it lacks {' and '.join(lacks)}")


def _decoded(tree: FileTree, names: Sequence[str], size: int, what: str) -> Tensor:
    """(N, 3, size, size) uint8; grey images become RGB. Threads, because decoding needs no interpreter's lock."""
    images = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    pixels = images.numpy()

    def decode(start: int) -> int:
        some = names[start : start + _IMAGES_A_TASK]
        for number, name in enumerate(some, start):
            pixels[number] = _pixels(tree, name, size).transpose(2, 0, 1)
        return len(some)

    with progress_bar(f"Tiny ImageNet: {what} images", len(names), unit="img") as bar, ThreadPoolExecutor() as pool:
        for count in pool.map(decode, range(0, len(names), _IMAGES_A_TASK)):
            bar.update(count)
    return images


def _pixels(tree: FileTree, name: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(tree.read(name))).convert("RGB")
    except (OSError, SyntaxError, BadZipFile) as error:
        raise IntegrityError(f"{name} in {tree.where} is not a readable image: {error}") from error
    if image.size != (size, size):
        raise IntegrityError(f"{name} in {tree.where} is {image.size[0]} x {image.size[1]}, expected {size} x {size}")
    return np.asarray(image)
