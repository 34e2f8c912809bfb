"""Normalisation and augmentation of uint8 images, on whole tensors.

Every image has its own draw without a loop over images: flips and shifts are one gather, cutout is one mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor, nn

from eeutils.errors import require
from eeutils.fields import Natural, Rule, check_choice, check_fields, check_range, check_type, described

SMALL_SIDE = 0.75  # of images with which a run may begin, as a share of their side


@dataclass(frozen=True)
class Normalization:
    """Pixel / 255, minus `mean`, divided by `std`, per channel."""

    mean: tuple[float, ...]  # one number per channel, on the scale 0..1; lists, arrays and tensors become tuples
    std: tuple[float, ...]  # likewise, positive

    def __post_init__(self) -> None:
        check_fields(self)
        usable = self.mean and len(self.mean) == len(self.std) and min(self.std) > 0
        require(usable, f"mean and std must be numbers per channel, std positive, got {self.mean} and {self.std}")

    @staticmethod
    def of(images: Tensor) -> "Normalization":
        """Return the mean and standard deviation of each channel of `images` (N, C, H, W) uint8."""
        # Counting levels is exact and needs no copy of the images in floating point.
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).cpu().double()
        level = torch.arange(256, dtype=torch.float64) / 255
        total = counts.sum(1, keepdim=True)
        mean = (counts * level).sum(1, keepdim=True) / total
        variance = (counts * (level - mean) ** 2).sum(1) / (total[:, 0] - 1).clamp_min(1)
        return Normalization(mean[:, 0], variance.sqrt().clamp_min(1e-6))

    def __call__(self, images: Tensor) -> Tensor:
        """Turn (N, C, H, W) uint8 into float32 of the same shape, in channels-last memory."""
        fits = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == len(self.mean)
        require(fits, f"images must be uint8 of shape (N, {len(self.mean)}, H, W), got {described(images)}")
        mean, std = _levels(self, images.device)
        return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)


def check_normalized(images: Tensor) -> None:
    """Raise TypeError or ValueError unless `images` is a batch (N, C, H, W) of uint8 pixels or normalised floats.

    Pixels have values above 1, or are all 0. Normalised photographs spread around 0: not all lie in [0, 1], and none
    beyond 30.
    """
    check_type("images", images, Tensor, "load_image and torch.from_numpy make one")
    shape = tuple(images.shape)
    require(len(shape) == 4 and shape[0] > 0, f"images must have shape (N, C, H, W), N of 1 or more, got {shape}")
    low, high = (extreme.item() for extreme in torch.aminmax(images.detach()))
    if images.is_floating_point():
        right = -30 <= low <= high <= 30 and (low < 0 or high > 1 or high - low < 0.5)  # a blank image may be in [0, 1]
    else:
        right = high != 1  # a blank image is one
    if not right:  # not `require`, whose message would slow single images down
        got = f"{images.dtype} in [{low:g}, {high:g}]; Cascade(..., normalization=data.normalization) takes uint8"
        raise ValueError(f"images must be uint8 in 0..255 or normalised floats, got {got}")


@lru_cache(maxsize=16)
def _levels(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std on the scale 0..255, (C, 1, 1) each; cached because a copy to a GPU makes the host wait."""
    levels = 255 * torch.tensor([normalization.mean, normalization.std], device=device)
    return levels[0, :, None, None], levels[1, :, None, None]


_Jitter = Annotated[float, Rule("in 0..1", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True)
class Augmentation:
    """Random changes, drawn anew for every image of a training batch.

    Brightness, contrast and saturation are torchvision's `ColorJitter`, in this order.
    """

    flip: bool = True  # mirror left and right, half of the time
    translate: Natural = 4  # shift by up to this many pixels each way; the border is mirrored
    cutout: Natural = 12  # side of a square set to the mean (DeVries & Taylor, arXiv 1708.04552), 0 for none
    brightness: _Jitter = 0.0  # largest change of the factor 1 that scales all pixels
    contrast: _Jitter = 0.0  # largest change of the factor that scales the distance from the image's mean grey
    saturation: _Jitter = 0.0  # largest change of the factor that scales the distance from each pixel's grey

    def __post_init__(self) -> None:
        check_fields(self)


def augmented_batch(
    images: Tensor, normalization: Normalization, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Augment and normalise (N, C, H, W) uint8 to float32 of the same shape, in channels-last memory.

    `generator` is on the device of `images`; the same state gives the same batch.
    """
    height, width = images.shape[2:]
    for name in ("translate", "cutout"):
        value = getattr(augmentation, name)
        check_range(f"{name} for images of {height} x {width} pixels", value, 0, min(height, width) - 1)
    moved = _flip_and_translate(images, augmentation, generator)
    jitter = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    if any(jitter):  # else nothing is drawn for it, so that a seed still means the batches of published results
        check_choice("channels of images with colour jitter", images.shape[1], (1, 3))
        moved = _jitter(moved, jitter, generator)
    batch = normalization(moved)
    if augmentation.cutout:
        batch.masked_fill_(_cutout_mask(images, augmentation.cutout, generator), 0.0)
    return batch


def shrunk(images: Tensor) -> Tensor:
    """Return normalised images (N, C, H, W) at `SMALL_SIDE` of their height and width."""
    return nn.functional.interpolate(images, scale_factor=SMALL_SIDE, mode="bilinear", antialias=True)


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
    # Index tensors around a slice put the channels last, the memory order of fast convolutions.
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(position: Tensor, size: int) -> Tensor:
    """Reflect positions beyond 0..size-1 at the border."""
    return size - 1 - (size - 1 - position.abs()).abs()


def _jitter(images: Tensor, reach: Sequence[float], generator: torch.Generator) -> Tensor:
    draws = torch.rand(3, len(images), generator=generator, device=images.device)
    factors = (1 + most * (2 * draw - 1) for most, draw in zip(reach, draws.unbind(), strict=True))
    return with_colours(images, *factors)


def with_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale each image (N, C, H, W) uint8, grey or RGB, by its own factors (N,); 1 changes nothing."""

    def blended(batch: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
        return (other + factor.view(-1, 1, 1, 1) * (batch - other)).clamp_(0, 255)

    batch = blended(images.float(), 0.0, brightness)
    batch = blended(batch, _grey(batch).mean((1, 2, 3), keepdim=True), contrast)
    return blended(batch, _grey(batch), saturation).round_().to(torch.uint8)


def _grey(batch: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of RGB, (N, 1, H, W)."""
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
