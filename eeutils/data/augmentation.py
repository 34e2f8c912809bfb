"""From uint8 images to a network's input: normalisation, and augmentation on whole tensors.

Every image gets its own draw, yet there is no loop over images: flips and shifts are one gather, cutout is one mask.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from eeutils.plain import make_plain, plain


@dataclass(frozen=True)
class Normalization:
    """Per channel: pixel / 255, minus `mean`, over `std` (both on the scale 0..1).

    Attributes:
        mean: one number a channel; of lists, arrays and tensors it makes tuples.
        std: likewise.

    Raises:
        ValueError: if they are no such numbers or not equally many, one is NaN or infinite, or a `std` is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channel_values(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one value a channel, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @staticmethod
    def from_json(values: Mapping[str, Sequence[float]]) -> "Normalization":
        """What `dataclasses.asdict` gave, after JSON has made lists of its tuples."""
        return Normalization(values["mean"], values["std"])

    @staticmethod
    def of(images: Tensor) -> "Normalization":
        """The mean and standard deviation of each channel of `images` (N, C, H, W) uint8."""
        # From how often each level occurs: exact, and without a copy of the images in floating point.
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).cpu().double()
        level = torch.arange(256, dtype=torch.float64) / 255
        total = counts.sum(1, keepdim=True)
        mean = (counts * level).sum(1, keepdim=True) / total
        variance = (counts * (level - mean) ** 2).sum(1) / (total[:, 0] - 1).clamp_min(1)
        return Normalization(mean[:, 0], variance.sqrt().clamp_min(1e-6))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> float32 of the same shape, in channels-last memory.

        Raises:
            ValueError: if the images are not uint8 or have another number of channels.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (0..255), got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"images must have shape (N, {len(self.mean)}, H, W), got {tuple(images.shape)}")
        mean, std = _levels(self, images.device)
        return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)


def _channel_values(name: str, values: Any) -> tuple[float, ...]:
    numbers = plain(values)
    if not isinstance(numbers, tuple) or not numbers or not all(isinstance(number, Real) for number in numbers):
        raise ValueError(f"{name} needs one value a channel, a sequence of numbers such as (0.5,), got {values!r}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite, got {numbers}")
    return tuple(map(float, numbers))


@lru_cache(maxsize=16)
def _levels(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std on the scale 0..255, (C, 1, 1) each; kept, for copying to a GPU makes the host wait for it."""
    levels = 255 * torch.tensor([normalization.mean, normalization.std], device=device)
    return levels[0, :, None, None], levels[1, :, None, None]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image of a training batch.

    Attributes:
        flip: mirror left and right, half of the time.
        translate: shift by up to this many pixels each way; the border is mirrored.
        cutout: side of a square set to the mean (DeVries & Taylor, arXiv 1708.04552), 0 for none.
        brightness: how far the factor of the pixels' values may be from 1; this and the next two are colour jitter, as
            torchvision's `ColorJitter`, but in this order always: it matters only where values are clipped.
        contrast: how far the factor of the distance from the image's mean grey may be from 1.
        saturation: how far the factor of the distance from each pixel's grey may be from 1.
    """

    flip: bool = True
    translate: int = 4
    cutout: int = 12
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        if self.translate < 0 or self.cutout < 0:
            raise ValueError(f"translate and cutout must not be negative, got {self.translate} and {self.cutout}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def jitters(self) -> bool:
        """Whether colours change."""
        return max(self.brightness, self.contrast, self.saturation) > 0


def augmented_batch(
    images: Tensor, normalization: Normalization, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """(N, C, H, W) uint8 -> augmented, normalised float32 of the same shape, in channels-last memory.

    `generator` lives on the device of `images`; the same state gives the same batch.

    Raises:
        ValueError: if the images are too small to be shifted so far or to have so large a square cut out, or are to
            change their colours and are neither RGB nor grey.
    """
    shorter_side = min(images.shape[2:])
    if max(augmentation.translate, augmentation.cutout) >= shorter_side:
        raise ValueError(
            f"translate {augmentation.translate} and cutout {augmentation.cutout} must be smaller than the images, "
            f"which have {images.shape[2]} x {images.shape[3]} pixels"
        )
    if augmentation.jitters and images.shape[1] not in (1, 3):
        raise ValueError(f"colour jitter needs images of 1 or 3 channels, got {images.shape[1]}")
    moved = _flip_and_translate(images, augmentation, generator)
    # Whoever does not jitter draws nothing for it: seeds of old still mean the same batches.
    batch = normalization(_jitter(moved, augmentation, generator) if augmentation.jitters else moved)
    if augmentation.cutout:
        batch.masked_fill_(_cutout_mask(images, augmentation.cutout, generator), 0.0)
    return batch


def _flip_and_translate(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    draw = {"generator": generator, "device": images.device}
    reach = augmentation.translate
    shifts = torch.randint(-reach, reach + 1, (2, n, 1), **draw)
    rows = _mirrored(torch.arange(height, device=images.device) + shifts[0], height)  # (N, H)
    columns = _mirrored(torch.arange(width, device=images.device) + shifts[1], width)  # (N, W)
    if augmentation.flip:
        flipped = torch.rand(n, 1, **draw) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    which = torch.arange(n, device=images.device)[:, None, None]
    # Index tensors around a slice put the channels last, which is the memory order that convolutions want.
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(position: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1, by less than the size, reflected at the border."""
    return size - 1 - (size - 1 - position.abs()).abs()


def _jitter(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    reach = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    draws = torch.rand(3, len(images), generator=generator, device=images.device)
    factors = (1 + most * (2 * draw - 1) for most, draw in zip(reach, draws.unbind(), strict=True))
    return with_colours(images, *factors)


def with_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Each image (N, C, H, W) uint8, grey or RGB, with its own factors (N,): 1 leaves it as it is, 0 takes all away."""

    def blended(batch: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
        return (other + factor.view(-1, 1, 1, 1) * (batch - other)).clamp_(0, 255)

    batch = blended(images.float(), 0.0, brightness)
    batch = blended(batch, _grey(batch).mean((1, 2, 3), keepdim=True), contrast)
    return blended(batch, _grey(batch), saturation).round_().to(torch.uint8)


def _grey(batch: Tensor) -> Tensor:
    """Luma (ITU-R 601) of RGB, (N, 1, H, W)."""
    if batch.shape[1] == 1:
        return batch
    red, green, blue = batch.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _cutout_mask(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    draw = {"generator": generator, "device": images.device}

    def band(size: int) -> Tensor:
        start = torch.randint(0, size - side + 1, (n, 1), **draw)
        position = torch.arange(size, device=images.device)
        return (position >= start) & (position < start + side)

    return band(height)[:, None, :, None] & band(width)[:, None, None, :]
