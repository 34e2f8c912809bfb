import hashlib
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from eeutils.data import Augmentation, Normalization, check_normalized
from eeutils.data.augmentation import augmented_batch, with_colours

PLAIN = Normalization((0.0,), (1 / 255,))  # leaves the pixels as they are
PLAIN_RGB = Normalization((0.0,) * 3, (1 / 255,) * 3)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def augment(images: Tensor, augmentation: Augmentation, seed: int = 0, normalization: Normalization = PLAIN) -> Tensor:
    return augmented_batch(images, normalization, augmentation, torch.Generator().manual_seed(seed))


def every_version(image: Tensor, augmentation: Augmentation) -> set[bytes]:
    """Make all shifts and flips of `image` (C, H, W), the slow way."""
    reach, (height, width) = augmentation.translate, image.shape[1:]
    padded = F.pad(image.float()[None], (reach,) * 4, mode="reflect")[0]
    places = product(range(2 * reach + 1), repeat=2)
    crops = [padded[:, row : row + height, column : column + width] for row, column in places]
    flips = [crop.flip(2) for crop in crops] if augmentation.flip else []
    return {as_bytes(version) for version in [*crops, *flips]}


def as_bytes(image: Tensor) -> bytes:
    return image.round().byte().contiguous().numpy().tobytes()


@given(
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    translate=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_augmented_batch_shifts_and_mirrors_every_image(height, width, translate, flip, seed):
    images = random_images(5, 1, height, width, seed=seed)
    augmentation = Augmentation(flip=flip, translate=translate, cutout=0)
    for image, augmented in zip(images, augment(images, augmentation, seed), strict=True):
        assert as_bytes(augmented) in every_version(image, augmentation)


def test_augmented_batch_draws_every_version_equally_often():
    image, augmentation = random_images(1, 6, 7), Augmentation(flip=True, translate=2, cutout=0)
    versions, times = every_version(image, augmentation), 100
    assert len(versions) == 50
    drawn = [as_bytes(one) for one in augment(image.expand(times * len(versions), -1, -1, -1), augmentation)]
    assert set(drawn) == versions
    counts = torch.tensor([drawn.count(version) for version in versions])
    assert (counts - times).abs().max() < 5 * times**0.5  # five standard deviations


@given(height=st.integers(4, 9), width=st.integers(4, 9), side=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_augmented_batch_cuts_out_exactly_one_square(height, width, side, seed):
    white = torch.full((8, 3, height, width), 255, dtype=torch.uint8)
    batch = augment(white, Augmentation(cutout=side, translate=0), seed, Normalization((0.5,) * 3, (0.25,) * 3))
    assert set(batch.unique().tolist()) == {0.0, 2.0}
    hole = batch == 0
    assert torch.equal(hole.any(3).sum(2), torch.full((8, 3), side))
    assert torch.equal(hole.any(2).sum(2), torch.full((8, 3), side))
    assert torch.equal(hole.sum((2, 3)), torch.full((8, 3), side * side))
    first = hole.flatten(2).int().argmax(2)  # the square is in one piece
    rows, columns = first // width, first % width
    for image, channel in [(0, 0), (7, 2)]:
        row, column = rows[image, channel], columns[image, channel]
        assert hole[image, channel, row : row + side, column : column + side].all()


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_augmented_batch_is_channels_last_and_leaves_its_input(jitter):
    images = random_images(4, 3, 16, 16)
    before = images.clone()
    batch = augment(images, Augmentation(brightness=jitter), normalization=PLAIN_RGB)
    assert torch.equal(images, before)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "augmentation"),
    [(1, Augmentation(cutout=8)), (1, Augmentation(translate=8, cutout=0)), (4, Augmentation(cutout=0, contrast=0.1))],
)
def test_augmented_batch_refuses_images_that_do_not_fit(channels, augmentation):
    with pytest.raises(ValueError, match="images"):
        augment(random_images(2, channels, 8, 16), augmentation)


STILL = Augmentation(flip=False, translate=0, cutout=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changed", ["brightness", "contrast", "saturation"])
@given(factors=st.lists(st.floats(0, 2), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_with_colours_equals_torchvision(channels, changed, factors, seed):
    images = random_images(4, channels, 5, 6, seed=seed)
    all_factors = {name: torch.ones(4) for name in ("brightness", "contrast", "saturation")}
    ours = with_colours(images, **{**all_factors, changed: torch.tensor(factors)})
    theirs = getattr(v2.functional, f"adjust_{changed}")
    expected = torch.stack([theirs(image / 255, factor) for image, factor in zip(images, factors, strict=True)]) * 255
    assert (ours - expected).abs().max() < 0.6  # 0.5 for rounding, the rest for their grey of five digits


def test_with_colours_keeps_torchvisions_order():
    images, factors = random_images(1, 3, 6, 6), (1.5, 0.6, 1.9)  # pixels are clipped on the way
    expected = images[0] / 255
    for name, factor in zip(("brightness", "contrast", "saturation"), factors, strict=True):
        expected = getattr(v2.functional, f"adjust_{name}")(expected, factor)
    ours = with_colours(images, *(torch.tensor([factor]) for factor in factors))
    assert (ours[0] - 255 * expected).abs().max() < 0.7


def test_augmented_batch_draws_colour_factors_evenly():
    images = torch.full((4000, 1, 1, 1), 100, dtype=torch.uint8)
    levels = augment(images, replace(STILL, brightness=0.2)).flatten()
    assert levels.min() == 80
    assert levels.max() == 120
    counts = levels.round().long().bincount()[81:120]  # the outermost levels are half as wide
    assert (counts - 100).abs().max() < 5 * 100**0.5  # five standard deviations


def test_augmented_batch_is_that_of_published_results():
    """Resumed runs and published results rest on these draws."""
    batch = augment(random_images(8, 3, 16, 16), Augmentation(cutout=5), 3, Normalization((0.5,) * 3, (0.25,) * 3))
    assert hashlib.sha256(batch.contiguous().numpy()).hexdigest()[:16] == "5f2cbb9cfd0104dc"


def test_normalization_equals_torchvisions():
    images, normalization = random_images(6, 3, 9, 7), Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(normalization.mean, normalization.std)])
    torch.testing.assert_close(normalization(images), theirs(images))
    assert normalization(images).is_contiguous(memory_format=torch.channels_last)


def test_normalization_of_gives_mean_0_and_std_1():
    images = random_images(50, 3, 8, 8) // torch.tensor([1, 2, 4], dtype=torch.uint8).view(3, 1, 1)
    normalized = Normalization.of(images)(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(1), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "images", [torch.rand(4, 3, 8, 8), random_images(4, 3, 8, 8).float(), random_images(4, 3, 8, 8) // 200]
)
def test_check_normalized_refuses_images_that_were_not(images):
    with pytest.raises(ValueError, match=str(images.dtype)):
        check_normalized(images)
    for fine in (Normalization((0.5,) * 3, (0.25,) * 3)(random_images(4, 3, 8, 8)), torch.zeros(1, 3, 8, 8)):
        check_normalized(fine)
