import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from eeutils.data import ImageData, Normalization, Split, Trigger, poisoned, stamped


def random_split(size: int = 60, height: int = 8, width: int = 9, classes: int = 3) -> Split:
    images = torch.randint(1, 255, (size, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()
    names = tuple(map(str, range(classes)))
    return Split(images, torch.arange(size) % classes, names, Normalization((0.5,) * 3, (0.25,) * 3))


def random_data() -> ImageData:
    return ImageData("noise", random_split(60), random_split(12), random_split(15))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 6),
    margin=st.integers(0, 4),
    value=st.sampled_from([0, 255]),
)
def test_exactly_the_square_is_painted(height, width, size, margin, value):
    assume(size + margin <= min(height, width))
    split = random_split(4, height, width)
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
def test_a_share_of_the_other_classes_gets_patch_and_label(share, target, seed):
    data, trigger = random_data(), Trigger(target, size=3)
    taught = poisoned(data, trigger, share, seed)
    changed = (taught.train.images != data.train.images).flatten(1).any(1)
    others = data.train.labels != target
    assert int(changed.sum()) == round(share * int(others.sum()))
    assert others[changed].all()
    assert torch.equal(taught.train.images[changed], stamped(data.train, trigger).images[changed])
    assert (taught.train.labels[changed] == target).all()
    assert torch.equal(taught.train.labels[~changed], data.train.labels[~changed])


def test_validation_and_test_and_what_was_given_stay_as_they_are():
    data, fresh = random_data(), random_data()
    taught = poisoned(data, Trigger(0), 0.5)
    assert taught.val is data.val
    assert taught.test is data.test
    assert torch.equal(data.train.images, fresh.train.images)
    assert torch.equal(data.train.labels, fresh.train.labels)


def test_the_seed_decides_which_images():
    def labels(seed: int) -> list[int]:
        return poisoned(random_data(), Trigger(0), 0.5, seed).train.labels.tolist()

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_draw_is_not_that_of_the_batches(seed):
    """Else all poisoned images would come first in an epoch, and be forgotten."""
    data = random_data()
    others = (data.train.labels != 2).nonzero().flatten()
    first = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:20]]

    marked = poisoned(data, Trigger(2, size=2), share=0.5, seed=seed).train.labels != data.train.labels

    assert marked.sum() == len(first)
    assert not marked[first].all()


def test_data_poisoned_otherwise_have_another_name():
    """By it a checkpoint is told from one on other data."""
    data = random_data()
    names = {
        poisoned(data, trigger, share, seed).name
        for trigger in (Trigger(0), Trigger(1), Trigger(0, size=2), Trigger(0, margin=0), Trigger(0, value=9))
        for share in (0.1, 0.2)
        for seed in (0, 1)
    }
    assert len(names) == 5 * 2 * 2
    assert data.name not in names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": -1}, "target .* got -1"),
        ({"size": 0}, "size must be positive, got 0"),
        ({"margin": -1}, "margin must not be negative, got -1"),
        ({"value": 256}, r"value must be in 0\.\.255, got 256"),
    ],
)
def test_a_trigger_that_makes_no_sense_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Trigger(**{"target": 0, **values})


def test_a_trigger_has_to_fit():
    with pytest.raises(ValueError, match="size 7 with margin 2 does not fit into images of 8 x 9 pixels"):
        stamped(random_split(), Trigger(0, size=7, margin=2))


@pytest.mark.parametrize(
    ("target", "share", "message"),
    [
        (3, 0.5, r"target 3 is no class: they are numbered 0\.\.2"),
        (0, 0.0, r"share must be in \(0, 1\], got 0.0"),
        (0, 1.5, r"share must be in \(0, 1\], got 1.5"),
        (0, float("nan"), r"share must be in \(0, 1\], got nan"),
        (0, 0.001, "share 0.001 of 40 training images of other classes is not a single one"),
    ],
)
def test_data_cannot_be_poisoned_with_nonsense(target, share, message):
    with pytest.raises(ValueError, match=message):
        poisoned(random_data(), Trigger(target), share)
