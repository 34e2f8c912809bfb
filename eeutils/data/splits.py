"""Images and labels in memory, the form of every dataset in this package, and training batches made from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eeutils.data.augmentation import Augmentation, Normalization, augmented_batch, check_normalized
from eeutils.errors import require
from eeutils.fields import check_range, check_type, described


@dataclass(frozen=True)
class Split:
    """One part of a dataset, on one device; also the way to show your own images to a trained network.

    predictions = predict(net, Split(images, labels, classes=data.classes, normalization=data.normalization))
    """

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64, each an index into `classes`
    classes: tuple[str, ...]  # names of the classes, at least two; any sequence becomes a tuple of str
    normalization: Normalization  # turns these images into the input of a network

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.classes))
        are_names = 2 <= len(self.classes) == len(set(self.classes))
        require(are_names, f"classes must be at least two different names, got {self.classes}")
        channels, got = len(self.normalization.mean), self.images.shape[1]
        require(channels == got, f"images must have the normalization's {channels} channels, got {got}")

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"{type(self).__name__}({len(self):,} images, {shape}, of {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor | slice) -> "Split":
        """Return the images at `index` (positions or a boolean mask), at least one."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images (n, C, H, W) float32, channels last, and labels (n,) in order, on `device`."""
        check_range("batch_size", batch_size, 1)
        for start in range(0, len(self), batch_size):
            images = self.images[start : start + batch_size].to(device)
            labels = self.labels[start : start + batch_size].to(device)
            yield self.normalization(images), labels


@dataclass(frozen=True)
class ImageData:
    """A dataset: `train` to learn from, `val` to choose by, `test` to report on, with the same classes and shapes."""

    name: str
    train: Split
    val: Split
    test: Split

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.name))
        check_normalized(self.train.images[:256])
        for part, split in (("val", self.val), ("test", self.test)):
            for what in ("classes", "normalization", "image_shape"):
                own, others = getattr(split, what), getattr(self.train, what)
                require(own == others, f"{part} of {self.name} must have the {what} of train, {others}, got {own}")

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


def check_split(split: Split) -> None:
    """Raise TypeError unless `split` is a `Split`, and ValueError if its images have no value above 1."""
    check_type("split", split, Split, "use data.test, or Split(images, labels, classes, normalization)")
    check_normalized(split.images[:256])


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless these are (N, C, H, W) uint8, with a hint how to convert them."""
    check_type("images", images, Tensor, "torch.from_numpy makes one")
    swapped = images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] > 4
    hint = "; convert floats in 0..1 by (images * 255).round().byte()" if images.is_floating_point() else ""
    hint = "; convert (N, H, W, C) by images.permute(0, 3, 1, 2)" if swapped else hint
    fits = images.dtype == torch.uint8 and images.ndim == 4 and 0 not in images.shape and not swapped
    require(fits, f"images must be uint8 of shape (N, C, H, W), at least one, got {described(images)}{hint}")


def _check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    check_type("labels", labels, Tensor, "torch.tensor makes one")
    fits, got = labels.dtype == torch.int64 and labels.shape == (num_images,), described(labels)
    require(fits, f"labels must be int64 of shape ({num_images},), got {got}; labels.long() converts them")
    for label in labels.aminmax():
        check_range("labels", int(label), 0, num_classes - 1)


def stratified_holdout(split: Split, holdout: int, seed: int) -> tuple[Split, Split]:
    """Draw `holdout` images by `seed`, every class in proportion; return the other images, then these."""
    from sklearn.model_selection import train_test_split  # takes a second to import

    index, labels = torch.arange(len(split)), split.labels.cpu()
    present, counts = labels.unique(return_counts=True)
    try:
        parts = train_test_split(index.numpy(), test_size=holdout, random_state=seed, stratify=labels.numpy())
    except ValueError:  # a class with one image, or fewer images than classes on one side
        parts = ()
    kept_and_held = [torch.from_numpy(part).sort().values for part in parts]
    if not parts or any(len(labels[part].unique()) < len(present) for part in kept_and_held):
        smallest = [f"{split.classes[present[i]]!r} has {counts[i]}" for i in counts.argsort(stable=True)[:5]]
        got = f"{holdout} of {len(split)} images, where {', '.join(smallest)}"
        raise ValueError(f"holdout must leave every class on both sides, got {got}; add images, or leave a class out")
    kept, held = kept_and_held
    return split.take(kept), split.take(held)


def split_data(
    name: str, raw: Mapping[str, Tensor], classes: tuple[str, ...], normalization: Normalization, validation_size: int
) -> ImageData:
    """Make a dataset of `eeutils.data.cache.RawData`; always hold out the same `validation_size` training images."""

    def split(part: str) -> Split:
        return Split(raw[f"{part}_images"], raw[f"{part}_labels"].long(), classes, normalization)

    train, val = stratified_holdout(split("train"), validation_size, seed=0)
    return ImageData(name, train, val, split("test"))


def seed_of(seed: int, rank: int) -> int:
    """Return the seed of one of several processes; seeds differ in the low 32 bits, all that a CPU looks at."""
    return seed ^ (rank * 0x9E3779B1 & 0xFFFFFFFF)


class TrainBatches:
    """Shuffled, augmented batches of a split that is kept on `device`.

    Order and draws of an epoch depend only on `seed` and the epoch's number, so a resumed run sees the same batches.
    All batches have one size: images left over at the end of an epoch are dropped from it. `batch_size` counts the
    images of all `world_size` processes, and is lowered to the size of the split and to a multiple of `world_size`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augmentation: Augmentation,
        device: torch.device | str,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.share = min(batch_size, len(split)) // world_size
        got = f"{batch_size} of a split of {len(split)}"
        require(self.share > 0, f"batch_size must give each of {world_size} processes an image, got {got}")
        self.split = split.to(device)
        self.batch_size = self.share * world_size
        self.augmentation = augmentation
        self.seed = seed
        self.rank = rank

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of each step: images (B, C, H, W) float32, channels last, and labels (B,)."""
        device = self.split.images.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.split), generator=generator, device=device)
        if self.rank:  # all processes share the order, each has its own draws
            generator.manual_seed(seed_of(self.seed * 1_000_003 + number, self.rank))
        for step in range(len(self)):
            start = step * self.batch_size + self.rank * self.share
            index = order[start : start + self.share]
            images, labels = self.split.images[index], self.split.labels[index]
            yield augmented_batch(images, self.split.normalization, self.augmentation, generator), labels
