from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data import ImageData, Normalization, Split, stratified_holdout
from tests.toys import random_split

GREY = Normalization((0.5,), (0.25,))


def split_of(counts: list[int]) -> Split:
    """`counts[c]` images of class c, each of its own colour."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Split(images, labels, tuple(map(str, range(len(counts)))), GREY)


def colours(split: Split) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())


@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=5), share=st.floats(0.2, 0.6), seed=st.integers(0, 100)
)
def test_stratified_holdout_parts_every_class_in_proportion(counts, share, seed):
    whole = split_of(counts)
    holdout = round(share * len(whole))
    kept, held = stratified_holdout(whole, holdout, seed)
    assert (len(kept), len(held)) == (len(whole) - holdout, holdout)
    assert colours(kept) | colours(held) == colours(whole)
    assert not colours(kept) & colours(held)
    for part in (kept, held):
        assert (part.images[:, 0, 0, 0].long().diff() > 0).all()  # in the order they were in
        assert torch.equal(part.labels, whole.labels[part.images[:, 0, 0, 0].long()])  # labels stay with their images
        exact = torch.tensor(counts) * len(part) / len(whole)
        assert (part.labels.bincount(minlength=len(counts)) - exact).abs().max() < 1


def test_stratified_holdout_depends_on_the_seed():
    whole = split_of([30, 30, 30])
    assert torch.equal(stratified_holdout(whole, 20, 1)[1].images, stratified_holdout(whole, 20, 1)[1].images)
    assert colours(stratified_holdout(whole, 20, 1)[1]) != colours(stratified_holdout(whole, 20, 2)[1])


@pytest.mark.parametrize(
    ("counts", "holdout"), [([9, 1], 5), ([5, 5], 1), ([5, 5], 9), ([5, 5], 0), ([5, 5], 11), ([100, 2], 97)]
)
def test_stratified_holdout_refuses_to_lose_a_class(counts, holdout):
    with pytest.raises(ValueError, match=rf"'\d' has {min(counts)}"):
        stratified_holdout(split_of(counts), holdout, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": torch.rand(4, 3, 8, 8)}, r"float32.*255"),
        ({"images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8)}, r"permute\(0, 3, 1, 2\)"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"0\.\.1, got 2"),
        ({"labels": torch.tensor([0, 1, 1])}, r"\(3,\)"),
        ({"classes": ("a", "b", "a")}, "'a', 'b', 'a'"),
    ],
)
def test_split_refuses(changes, named):
    with pytest.raises(ValueError, match=named):
        replace(random_split(4, num_classes=2), **changes)


def test_split_batches_yields_all_images_in_order_normalised():
    split = split_of([3, 4]).take(torch.tensor([5, 0, 2, 6, 1, 4, 3]))
    steps = list(split.batches(3))
    assert [len(labels) for _, labels in steps] == [3, 3, 1]
    assert torch.equal(torch.cat([labels for _, labels in steps]), split.labels)
    torch.testing.assert_close(torch.cat([images for images, _ in steps]), (split.images.float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": Normalization((0.1,), (1.0,))},
        {"classes": ("1", "0")},
        {"images": torch.zeros(6, 1, 4, 4).byte()},
    ],
)
@pytest.mark.parametrize("part", ["val", "test"])
def test_image_data_refuses_splits_that_differ(changes, part):
    splits = {name: split_of([3, 3]) for name in ("train", "val", "test")}
    splits[part] = replace(splits[part], **changes)
    with pytest.raises(ValueError, match=part):
        ImageData("own", **splits)
