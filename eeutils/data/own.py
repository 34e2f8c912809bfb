"""Your own images as a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import progress_bar
from eeutils.data.splits import ImageData, Split, check_images, stratified_holdout
from eeutils.errors import IntegrityError


def data_from_tensors(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    name: str = "own",
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    normalization: Normalization | None = None,
) -> ImageData:
    """Images and labels as a data set, split at random with every class in proportion.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, indices into `classes`.
        classes: the classes' names.
        name: what to call the data set.
        val_share: the part of N to choose by.
        test_share: the part of N to report on.
        seed: of the split.
        normalization: by default that of the training images; for trained weights the one that they were trained with,
            `eeutils.weights.weight_entry(name).normalization`.

    Raises:
        TypeError: if images or labels are no tensor.
        ValueError: if shapes, dtypes, labels or the normalization's channels do not fit, or a share leaves a split
            without some class.
    """
    if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
        raise ValueError(f"val_share {val_share} and test_share {test_share} must be positive and sum to less than 1")
    check_images(images)
    channels = images.shape[1]
    unknown_yet = Normalization((0.0,) * channels, (1.0,) * channels)
    everything = Split(images, labels, tuple(classes), normalization or unknown_yet)
    rest, test = stratified_holdout(everything, round(test_share * len(images)), seed)
    train, val = stratified_holdout(rest, round(val_share * len(images)), seed)
    if normalization is None:
        normalization = Normalization.of(train.images)  # of what is trained on, and of nothing else
    return ImageData(name, *(replace(split, normalization=normalization) for split in (train, val, test)))


def data_from_folder(root: Path | str, *, size: int, classes: Sequence[str] | None = None, **kwargs: Any) -> ImageData:
    """`data_from_tensors` of a folder that has one folder of images a class, each read by `load_image`.

    Args:
        root: the folder; the names of the folders in it are the classes.
        size: pixels a side of the squares that the images become.
        classes: the folders that have to be there, in the order in which labels number them: that of a trained network.
            By default whatever is there, in alphabetical order.
        kwargs: those of `data_from_tensors`, `normalization` for one.

    Raises:
        FileNotFoundError: if there is no such folder, a class has none in it, or a class has no image.
        IntegrityError: if a file is not an image that can be read; it names the file.
        ValueError: as `data_from_tensors` and `load_image` do, or if there is a folder of another class than `classes`.
    """
    from torchvision.datasets import ImageFolder

    if classes is not None:
        _check_folders(Path(root), classes)
    folder = ImageFolder(root, loader=partial(load_image, size=size))
    names = tuple(folder.classes if classes is None else classes)
    images = torch.cat(list(_decoded(folder)))
    labels = torch.tensor([names.index(name) for name in folder.classes])[folder.targets]
    return data_from_tensors(images, labels, names, **{"name": Path(root).resolve().name, **kwargs})


def load_image(path: Path | str, *, size: int) -> Tensor:
    """An image file as (1, 3, size, size) uint8, made just as `data_from_folder` makes its images.

    It is turned as its EXIF says, 16 bits a pixel become 8, grey becomes RGB, and transparency is dropped: a pixel gets
    the colour that it has in the file, seen or not. Then it is scaled until the shorter side has `size` pixels, and the
    middle square is kept. To ask a network, normalise it as the training images were:
    `net(data.normalization(load_image("photo.jpg", size=32)))`; a `Cascade` is called alike.

    Raises:
        FileNotFoundError: if there is no such file.
        IntegrityError: if it is not an image that can be read.
        ValueError: if `size` is not positive, or pixels have more than 16 bits and no known white.
    """
    from torchvision.transforms.v2 import functional

    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    square = functional.center_crop(functional.resize(_read_image(path), [size]), [size])
    return functional.pil_to_tensor(square)[None]


def _check_folders(root: Path, classes: Sequence[str]) -> None:
    present = {path.name for path in root.iterdir() if path.is_dir()}
    if missing := [name for name in classes if name not in present]:
        raise FileNotFoundError(f"{root} has no folder for the classes {missing}; it has {sorted(present)}")
    if unknown := sorted(present - set(classes)):
        raise ValueError(f"{root} has folders {unknown} that are none of the classes {list(classes)}")


def _decoded(folder: Dataset) -> Iterator[Tensor]:
    with progress_bar("reading images", len(folder), unit="img") as bar:
        for image, _ in folder:
            bar.update()
            yield image


def _read_image(path: Path | str) -> Any:
    """A PIL image in RGB, as its EXIF says to hold it."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise IntegrityError(f"{path} is not a readable image: {error}") from error
    if image.mode in ("I", "F"):  # Pillow would clip them to 0..255
        raise ValueError(
            f"{path} has pixels of more than 16 bits (Pillow's mode {image.mode}); which of their values are black and "
            "white is not known. Save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))  # 65535 becomes 255
    if "transparency" in image.info:
        image = image.convert("RGBA")  # of a palette Pillow would warn that RGB cannot keep it
    return image.convert("RGB")
