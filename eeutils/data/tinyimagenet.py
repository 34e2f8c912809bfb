"""Tiny ImageNet: 100,000 + 10,000 colour images of 64 x 64 pixels in 200 classes of ImageNet (Stanford's CS231n).

The labels of its test images are secret, so its validation images are the test split, as in Shallow-Deep Networks, and
validation is held out of the training images. The user's files are read where they are; none is moved.
"""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data, expected_shapes
from eeutils.data.images import open_image
from eeutils.data.splits import ImageData, split_data
from eeutils.download import Source, check_hash, download, local_folders, progress_bar
from eeutils.errors import IntegrityError, a_few

FOLDER = "tiny-imagenet-200"
# The values in general use: mean and standard deviation of each channel over the training images.
NORMALIZATION = Normalization(mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821))
_IMAGES_A_TASK = 64

Root = Path | zipfile.Path


@dataclass(frozen=True)
class TinyImageNetArchive:
    """Official archive: classes are in `wnids.txt`, test images in `val`, each class's training images in `train`."""

    url: str = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: str = "90528d7ca1a48142e341f4ef8d21d0de"
    size: int = 248_100_043  # in bytes
    image_size: int = 64  # pixels per side
    num_classes: int = 200
    train_per_class: int = 500
    num_test: int = 10_000
    validation_size: int = 10_000  # training images to hold out

    @property
    def content(self) -> dict[str, Content]:
        """Shapes of the decoded data; JPEG decoders differ in the last bits, so there are no hashes."""
        image_shape = (3, self.image_size, self.image_size)
        return expected_shapes(self.num_classes * self.train_per_class, self.num_test, image_shape)


TINY_IMAGENET = TinyImageNetArchive()


def load_tinyimagenet() -> ImageData:
    """Load Tiny ImageNet: 90,000 training, 10,000 validation (stratified, seeded) and 10,000 test images.

    Decoding takes about a minute the first time; later calls read one file of 1.4 GB.
    """
    archive = TINY_IMAGENET
    raw = cached_data("tinyimagenet", archive.content, partial(tinyimagenet_sources, archive))
    return split_data("tinyimagenet", raw, as_names(raw["class_names"]), NORMALIZATION, archive.validation_size)


def tinyimagenet_sources(archive: TinyImageNetArchive, folder: Path) -> list[Source[RawData]]:
    """List the local copies, unpacked or zipped, then the official site, which downloads into `folder`."""
    by_hand = f"download {archive.url} by hand and set EEUTILS_DATA to the folder that holds it"
    sources = []
    for place in local_folders():
        again = f"unpack {FOLDER}.zip in {place} again, in full, or set EEUTILS_DATA to its folder"
        unpacked, zipped = place / FOLDER, place / f"{FOLDER}.zip"
        sources.append(Source(f"folder {FOLDER} in {place}", partial(read_folder, unpacked, archive), again))
        sources.append(Source(f"{FOLDER}.zip in {place}", partial(read_zip, zipped, archive), by_hand))
    return [*sources, Source("official site", partial(fetch_official_site, archive, folder), by_hand)]


def read_zip(path: Path, archive: TinyImageNetArchive = TINY_IMAGENET) -> RawData:
    """Read the archive as it was downloaded; nothing is unpacked."""
    check_hash(path, "md5", archive.md5)
    with zipfile.ZipFile(path) as file:
        return read_folder(zipfile.Path(file, f"{FOLDER}/"), archive)


def fetch_official_site(archive: TinyImageNetArchive, folder: Path) -> RawData:
    """Download the archive into `folder` and read it."""
    path = folder / f"{FOLDER}.zip"
    check = partial(check_hash, algorithm="md5", expected=archive.md5)
    download(archive.url, path, check, size=archive.size)
    return read_zip(path, archive)


def read_folder(root: Root, archive: TinyImageNetArchive = TINY_IMAGENET) -> RawData:
    """Read the folder `tiny-imagenet-200`, unpacked or in its zip.

    Its files have no published hashes: names, numbers and sizes are checked, not what the images show.
    """
    # A name with a slash in it could lead out of the folder.
    ids = sorted(set(re.findall(r"^n\d+$", _text(root, "wnids.txt"), re.MULTILINE)))
    classes = {each: number for number, each in enumerate(ids)}
    annotations = re.findall(r"^(\w+\.JPEG)\t(n\d+)\b", _text(root, "val/val_annotations.txt"), re.MULTILINE)
    test = {f"val/images/{name}": classes[each] for name, each in annotations if each in classes}
    train = [f"train/{each}/images/{each}_{number}.JPEG" for each in ids for number in range(archive.train_per_class)]
    missing = [name for name in [*train, *test] if not (root / name).is_file()]
    if missing or (len(ids), len(test)) != (archive.num_classes, archive.num_test):
        found = f"{len(ids)} of {archive.num_classes} classes, {len(test)} of {archive.num_test} test images"
        raise IntegrityError(f"{root} is incomplete: it lists {found}, and lacks {a_few(missing) or 'none of them'}")
    return {
        "train_images": _decoded(root, train, archive.image_size, "training"),
        "train_labels": torch.arange(len(ids), dtype=torch.uint8).repeat_interleave(archive.train_per_class),
        "test_images": _decoded(root, list(test), archive.image_size, "test"),
        "test_labels": torch.tensor(list(test.values()), dtype=torch.uint8),
        "class_names": as_bytes(_class_names(root, ids)),
    }


def _text(root: Root, name: str) -> str:
    try:
        return (root / name).read_text("utf-8")
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{root / name} is not a readable text file: {error}") from error


def _class_names(root: Root, ids: Sequence[str]) -> list[str]:
    """Return the first name that `words.txt` has for each class; all of its names where two classes share the first."""
    words = dict(re.findall(r"^(n\d+)\t(.+)$", _text(root, "words.txt"), re.MULTILINE))
    short = {each: words.get(each, each).split(",")[0].strip() for each in ids}
    shared = Counter(short.values())
    return [short[each] if shared[short[each]] == 1 else words[each].strip() for each in ids]


def _decoded(root: Root, names: Sequence[str], size: int, what: str) -> Tensor:
    """Decode images to (N, 3, size, size) uint8, in threads: decoding releases the interpreter's lock."""
    images = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    pixels = images.numpy()

    def decode(start: int) -> int:
        some = names[start : start + _IMAGES_A_TASK]
        for number, name in enumerate(some, start):
            image = open_image(io.BytesIO((root / name).read_bytes()), str(root / name))
            if image.size != (size, size):
                raise IntegrityError(f"{root / name} must have {size} x {size} pixels, got {image.size}")
            pixels[number] = np.asarray(image).transpose(2, 0, 1)
        return len(some)

    with progress_bar(f"Tiny ImageNet: {what} images", len(names), unit="img") as bar, ThreadPoolExecutor() as pool:
        for count in pool.map(decode, range(0, len(names), _IMAGES_A_TASK)):
            bar.update(count)
    return images
