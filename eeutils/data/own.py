"""Your own images as a dataset: tensors, folders, datasets of torchvision and of Hugging Face."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization
from eeutils.data.images import as_tensor, image_suffixes, open_image
from eeutils.data.splits import ImageData, Split, check_images, stratified_holdout
from eeutils.download import progress_bar
from eeutils.errors import require
from eeutils.fields import check_type

if TYPE_CHECKING:
    from PIL.Image import Image

_NAMES = {"train": ["train", "training"], "val": ["val", "valid", "validation"], "test": ["test", "testing"]}
_PARTS = {name: part for part, names in _NAMES.items() for name in names}
Labelled = tuple[Tensor, Tensor]


def data_from_tensors(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    val: Labelled | None = None,
    test: Labelled | None = None,
    name: str = "own",
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    normalization: Normalization | None = None,
) -> ImageData:
    """Make a dataset of images (N, C, H, W) uint8 and labels (N,) int64.

    Images and labels to validate and to test, if not given, are held out at random by `seed`, shares of N with every
    class in proportion. The normalization is by default that of the training images; for trained weights give the one
    they were trained with, `eeutils.weights.weight_entry(name).normalization`.
    """
    fits = val_share > 0 and test_share > 0 and val_share + test_share < 1
    got = f"{val_share} and {test_share}"
    require(fits, f"val_share and test_share must be positive and sum to less than 1, got {got}")
    check_images(images)
    unknown_yet = Normalization((0.0,) * images.shape[1], (1.0,) * images.shape[1])
    parts = {"train": (images, labels), "val": val, "test": test}
    splits = {part: Split(*each, tuple(classes), normalization or unknown_yet) for part, each in parts.items() if each}
    for part, share in (("test", test_share), ("val", val_share)):
        if part not in splits:
            splits["train"], splits[part] = stratified_holdout(splits["train"], round(share * len(images)), seed)
    if normalization is None:
        normalization = Normalization.of(splits["train"].images)  # of what is trained on, and of nothing else
    return ImageData(name, *(replace(splits[part], normalization=normalization) for part in parts))


def data_from_folder(root: Path | str, *, size: int, classes: Sequence[str] | None = None, **kwargs: Any) -> ImageData:
    """Read a folder with one folder of images per class, as `load_image` reads each of them.

    The class folders may also be inside `train`, `val` and `test`; a missing `val` or `test` is held out of `train`.
    Hidden files and folders are ignored. Everything else that is not an image is skipped, with one warning; an image
    that is damaged raises IntegrityError.

    Args:
        size: pixels per side of the squares that the images become.
        classes: the class folders in the order of their labels, as a trained network has it; by default alphabetical.
        kwargs: those of `data_from_tensors`.
    """
    root, skipped = Path(root), Counter[str]()
    folders = {_PARTS[path.name]: path for path in _folders(root) if path.name in _PARTS}
    if "train" in folders and _folders(folders["train"]):
        skipped.update(f"folder {path.name}" for path in _folders(root) if path.name not in _PARTS)
    else:
        folders = {"train": root}
    names = tuple(classes or (path.name for path in _folders(folders["train"])))
    files = {part: _image_files(folder, names, skipped) for part, folder in folders.items()}
    if skipped:
        found = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in skipped.most_common())
        warnings.warn(f"skipped in {root}, not images that can be read: {found}", stacklevel=2)
    parts = {part: _in_memory(_opened(each), sum(map(len, each)), size) for part, each in files.items()}
    return data_from_tensors(*parts.pop("train"), names, **{"name": root.resolve().name, **parts, **kwargs})


def data_from_torchvision(
    train: Any, test: Any = None, *, size: int | None = None, classes: Sequence[str] | None = None, **kwargs: Any
) -> ImageData:
    """Read a torchvision classification dataset, built without a transform, into memory.

        data_from_torchvision(FashionMNIST("data"), FashionMNIST("data", train=False), size=32)

    By default test images are held out of `train`, images keep the size that all of them have, and `classes` are
    `train.classes`. `kwargs` are those of `data_from_tensors`.
    """

    def read(dataset: Any) -> Labelled:
        return _in_memory((dataset[index] for index in range(len(dataset))), len(dataset), size)

    options = {"name": type(train).__name__, "test": None if test is None else read(test), **kwargs}
    return data_from_tensors(*read(train), classes or train.classes, **options)


def data_from_hf(dataset: Any, *, size: int | None = None, **kwargs: Any) -> ImageData:
    """Read a Hugging Face image classification dataset into memory.

        data_from_hf(datasets.load_dataset("beans"), size=64)

    `dataset` is a `datasets.DatasetDict` with a split "train", or one `datasets.Dataset`, with one column of images and
    one of class labels. Images by default keep the size that all of them have; `kwargs` are those of
    `data_from_tensors`.
    """
    splits = dataset if isinstance(dataset, Mapping) else {"train": dataset}
    features = splits["train"].features
    columns = {type(feature).__name__: name for name, feature in features.items()}
    has_both = {"Image", "ClassLabel"} <= columns.keys()
    require(has_both, f"dataset must have a column of type Image and one of ClassLabel, got {features}")
    image, label = columns["Image"], columns["ClassLabel"]
    undecoded = type(features[image])(decode=False)  # datasets would open files of every format

    def opened(rows: Any) -> Iterator[tuple["Image", int]]:
        for row in rows.select_columns([image, label]).cast_column(image, undecoded):
            content, path = row[image]["bytes"], row[image]["path"]
            yield open_image(BytesIO(content or Path(path).read_bytes()), path or f"column {image}"), row[label]

    parts = {_PARTS[part]: _in_memory(opened(rows), len(rows), size) for part, rows in splits.items() if part in _PARTS}
    name = splits["train"].info.dataset_name or "own"
    return data_from_tensors(*parts.pop("train"), features[label].names, **{"name": name, **parts, **kwargs})


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and _is_visible(path.name))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _image_files(root: Path, classes: Sequence[str], skipped: Counter[str]) -> list[list[Path]]:
    """Return the image files of each class, and count the other files by suffix."""
    suffixes, by_class = image_suffixes(), {folder.name: [] for folder in _folders(root)}
    for name, images in by_class.items():
        for where, below, files in os.walk(root / name, followlinks=True):
            below[:] = filter(_is_visible, below)
            for path in (Path(where, file) for file in files if _is_visible(file)):
                if path.suffix.lower() in suffixes:
                    images.append(path)
                else:
                    skipped[path.suffix.lower()] += 1
    expected = sorted(classes) if len(classes) > 1 else "at least two"
    fits = sorted(name for name, images in by_class.items() if images) == expected
    counts = {name: len(images) for name, images in by_class.items()}
    require(fits, f"{root} must have one folder of images per class, {expected}, got {counts}")
    return [sorted(by_class[name]) for name in classes]


def _opened(files: Sequence[Sequence[Path]]) -> Iterator[tuple["Image", int]]:
    for label, paths in enumerate(files):
        for path in paths:
            with path.open("rb") as file:
                yield open_image(file, str(path)), label


def _in_memory(samples: Iterable[tuple["Image", int]], count: int, size: int | None) -> Labelled:
    """Return `count` images (N, 3, H, W) uint8 and their labels (N,)."""
    from PIL import Image

    images, labels = torch.empty(0, 3, 1, 1, dtype=torch.uint8), []
    with progress_bar("reading images", count, unit="img") as bar:
        for number, (image, label) in enumerate(samples):
            check_type("image", image, Image.Image, "use no transform")
            pixels = as_tensor(image, size)
            if not number:
                images = torch.empty(count, *pixels.shape, dtype=torch.uint8)
            got = f"{pixels.shape} and {images.shape[1:]}"
            require(pixels.shape == images.shape[1:], f"images must have one size, got {got}; choose size=")
            images[number] = pixels
            labels.append(label)
            bar.update()
    return images, torch.tensor(labels, dtype=torch.int64)
