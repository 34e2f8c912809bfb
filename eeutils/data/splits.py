"""Images and labels in memory: what every data set looks like to the rest of the package."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization


@dataclass(frozen=True)
class Split:
    """One part of a data set, on one device; also what images of one's own become, to be read by a trained network.

        mine = Split(images, labels, classes=data.classes, normalization=data.normalization)
        predictions = predict(net, mine)

    For shipped weights the normalization is `eeutils.weights.weight_entry(name).normalization`.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, each an index into `classes`.
        classes: the names of the classes; whatever sequence is given, a tuple of str.
        normalization: how these images become a network's input.

    Raises:
        TypeError: if images or labels are no tensor.
        ValueError: if shapes, dtypes, labels or the normalization's channels do not fit, or there is no image.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    normalization: Normalization

    def __post_init__(self) -> None:
        check_images(self.images)
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        _check_labels(self.labels, len(self.images), len(self.classes))
        channels = self.images.shape[1]
        if len(self.normalization.mean) != channels:
            raise ValueError(f"images have {channels} channels, normalization is for {len(self.normalization.mean)}")

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"{type(self).__name__}({len(self):,} images, {shape}, of {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor | slice) -> "Split":
        """The images that `index` (positions or a boolean mask) picks; an empty choice is a ValueError."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """In order: normalised images (n, C, H, W) float32, channels last, and labels (n,), on `device`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        for start in range(0, len(self), batch_size):
            images = self.images[start : start + batch_size].to(device)
            labels = self.labels[start : start + batch_size].to(device)
            yield self.normalization(images), labels


@dataclass(frozen=True)
class ImageData:
    """A data set: `train` to learn from, `val` to choose by, `test` to report on.

    Attributes:
        name: what to call it; of a Path, say, it makes a str.
        train, val, test: of the same classes, normalization and shape of images.

    Raises:
        ValueError: if the three differ in their classes, their normalization or the shape of their images.
    """

    name: str
    train: Split
    val: Split
    test: Split

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.name))
        for part, split in (("val", self.val), ("test", self.test)):
            for what in ("classes", "normalization", "image_shape"):
                own, others = getattr(split, what), getattr(self.train, what)
                if own != others:
                    raise ValueError(f"{part} of {self.name} has another {what} than train: {own}, not {others}")

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return (
            f"{type(self).__name__}({self.name!r}: {len(self.train):,} training, {len(self.val):,} validation and "
            f"{len(self.test):,} test images, {shape}, of {len(self.classes)} classes)"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def normalization(self) -> Normalization:
        return self.train.normalization

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape


def check_images(images: Tensor) -> None:
    """See that these are (N, C, H, W) uint8; an error says what is wrong and how to put it right.

    Raises:
        TypeError: if they are no tensor.
        ValueError: if they have another shape or dtype, or there is none.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}; torch.from_numpy makes one")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if images.shape[3] in (1, 3) and images.shape[1] > 4:
        raise ValueError(
            f"images of shape {tuple(images.shape)} look like (N, H, W, C), but must be (N, C, H, W); convert them "
            "with images.permute(0, 3, 1, 2)"
        )
    if images.dtype != torch.uint8:
        hint = "; floats in 0..1 become uint8 by (images * 255).round().byte(), those in 0..255 by .round().byte()"
        raise ValueError(f"images must be uint8, got {images.dtype}{hint if images.is_floating_point() else ''}")
    if 0 in images.shape:
        raise ValueError(f"a split needs at least one image of at least one pixel, got shape {tuple(images.shape)}")


def _check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}; torch.tensor makes one")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}; convert them with labels.long()")
    if labels.shape != (num_images,):
        raise ValueError(f"{num_images} images need labels of shape ({num_images},), got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}, but {num_classes} classes are numbered 0..{num_classes - 1}"
        )


def missing_classes(split: Split) -> list[str]:
    """The names of the classes that no image of `split` belongs to."""
    counts = split.labels.bincount(minlength=len(split.classes)).tolist()
    return [name for name, count in zip(split.classes, counts, strict=True) if not count]


def stratified_holdout(split: Split, holdout: int, seed: int) -> tuple[Split, Split]:
    """Part `split` in two, the second with `holdout` images, every class in proportion; the same for a seed.

    Raises:
        ValueError: if one part would be empty or could not have every class.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    index, labels = torch.arange(len(split)), split.labels.cpu()
    try:
        parts = train_test_split(index.numpy(), test_size=holdout, random_state=seed, stratify=labels.numpy())
    except ValueError as error:
        raise ValueError(f"cannot hold out {holdout} of {len(split)} images: {error}") from error
    kept, held = (torch.from_numpy(part).sort().values for part in parts)
    present = labels.unique()
    for part in (kept, held):
        missing = present[~torch.isin(present, labels[part])].tolist()
        if missing:
            names = [split.classes[label] for label in missing]
            raise ValueError(f"cannot hold out {holdout} of {len(split)} images: too few are of {names}")
    return split.take(kept), split.take(held)


def split_data(
    name: str, raw: Mapping[str, Tensor], classes: tuple[str, ...], normalization: Normalization, validation_size: int
) -> ImageData:
    """A data set with published test images: of the training images some are held out to choose by, always the same.

    Args:
        name: of the data set.
        raw: `eeutils.data.cache.RawData`.
        classes: what the labels stand for.
        normalization: of all images.
        validation_size: how many are held out.
    """

    def split(part: str) -> Split:
        return Split(raw[f"{part}_images"], raw[f"{part}_labels"].long(), classes, normalization)

    train, val = stratified_holdout(split("train"), validation_size, seed=0)
    return ImageData(name, train, val, split("test"))
