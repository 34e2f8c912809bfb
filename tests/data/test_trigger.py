from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from eeutils.data import ImageData, Split, Trigger, poisoned, stamped
from tests.toys import random_split


def noise(count: int = 60, height: int = 8, width: int = 9) -> Split:
    """Three classes of images without black and white pixels."""
    split = random_split(count, 9, num_classes=3)
    return replace(split, images=split.images[:, :, :height, :width].clamp(1, 254))


def random_data() -> ImageData:
    return ImageData("noise", noise(60), noise(12), noise(15))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 6),
    margin=st.integers(0, 4),
    value=st.sampled_from([0, 255]),
)
def test_stamped_paints_exactly_the_square(height, width, size, margin, value):
    assume(size + margin <= min(height, width))
    split = noise(4, height, width)
    before = split.images.clone()
    marked = stamped(split, Trigger(1, size, margin, value))
    changed = marked.images != before
    rows, columns = torch.arange(height) + margin, torch.arange(width) + margin
    square = ((rows >= height - size) & (rows < height))[:, None] & ((columns >= width - size) & (columns < width))
    assert torch.equal(changed, square.expand_as(changed))
    assert (marked.images[changed] == value).all()
    assert torch.equal(marked.labels, split.labels)
    assert torch.equal(split.images, before)


@given(share=st.floats(0.05, 1), target=st.integers(0, 2), seed=st.integers(0, 1000))
def test_poisoned_stamps_and_relabels_a_share_of_the_other_classes(share, target, seed):
    data, trigger = random_data(), Trigger(target, size=3)
    taught = poisoned(data, trigger, share, seed)
    changed = (taught.train.images != data.train.images).flatten(1).any(1)
    others = data.train.labels != target
    assert int(changed.sum()) == round(share * int(others.sum()))
    assert others[changed].all()
    assert torch.equal(taught.train.images[changed], stamped(data.train, trigger).images[changed])
    assert (taught.train.labels[changed] == target).all()
    assert torch.equal(taught.train.labels[~changed], data.train.labels[~changed])
    assert taught.val is data.val
    assert taught.test is data.test


@pytest.mark.parametrize("seed", [0, 7])
def test_poisoned_does_not_draw_as_batches_do(seed):
    """Otherwise all poisoned images would come first in an epoch, and be forgotten."""
    data = random_data()
    others = (data.train.labels != 2).nonzero().flatten()
    first = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:20]]
    marked = poisoned(data, Trigger(2, size=2), share=0.5, seed=seed).train.labels != data.train.labels
    assert marked.sum() == len(first)
    assert not marked[first].all()


@pytest.mark.parametrize(
    ("target", "share", "named"), [(3, 0.5, "3"), (0, 0.0, "0.0"), (0, 1.5, "1.5"), (0, 0.001, "0.001")]
)
def test_poisoned_refuses_targets_shares_and_sizes(target, share, named):
    with pytest.raises(ValueError, match=named):
        poisoned(random_data(), Trigger(target), share)
    with pytest.raises(ValueError, match=r"8 x 9.*size=7, margin=2"):
        stamped(noise(), Trigger(0, size=7, margin=2))
    with pytest.raises(ValueError, match=r"value.*256"):
        Trigger(0, value=256)
