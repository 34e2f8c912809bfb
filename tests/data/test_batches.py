from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data import Augmentation, Normalization, Split, TrainBatches
from eeutils.data.splits import seed_of

NOTHING = Augmentation(flip=False, translate=0, cutout=0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def numbered_split(size: int) -> Split:
    """Image i has the colour i, which shows the images of a batch."""
    images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    classes = tuple(map(str, range(7)))
    return Split(images, torch.arange(size) % 7, classes, Normalization((0.0,), (1 / 255,)))


def batches(
    size: int, batch_size: int, *, seed: int = 0, augmentation: Augmentation = NOTHING, device="cpu", **share: int
):
    return TrainBatches(numbered_split(size), batch_size, augmentation, device, seed, **share)


def numbers(epoch) -> list[list[int]]:
    return [images[:, 0, 0, 0].round().int().tolist() for images, _ in epoch]


@given(size=st.integers(1, 200), batch_size=st.integers(1, 250), seed=st.integers(0, 1000), epoch=st.integers(0, 300))
def test_train_batches_have_one_size_and_no_image_twice(size, batch_size, seed, epoch):
    made = batches(size, batch_size, seed=seed)
    steps = list(made.epoch(epoch))
    assert len(steps) == len(made) == size // min(batch_size, size)
    assert {(len(images), len(labels)) for images, labels in steps} == {(min(batch_size, size),) * 2}
    seen = [number for step in numbers(steps) for number in step]
    assert len(set(seen)) == len(seen)
    assert torch.equal(torch.cat([labels for _, labels in steps]), torch.tensor(seen) % 7)


@given(size=st.integers(5, 200), batch_size=st.integers(5, 250), world_size=st.integers(1, 5), epoch=st.integers(0, 9))
def test_train_batches_of_all_ranks_make_up_those_of_one_process(size, batch_size, world_size, epoch):
    shares = [batches(size, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {(len(each), each.batch_size) for each in shares} == {(len(shares[0]), shares[0].batch_size)}
    assert 0 <= min(batch_size, size) - shares[0].batch_size < world_size
    together = [list(chain(*parts)) for parts in zip(*(numbers(each.epoch(epoch)) for each in shares), strict=True)]
    assert together == numbers(batches(size, shares[0].batch_size).epoch(epoch))


def test_train_batches_draw_differently_on_every_rank():
    shift, images = Augmentation(flip=False, translate=2, cutout=3), torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    bright = Normalization((0.5,), (1.0,))  # is what is cut out
    split = Split(images, torch.zeros(64).long(), ("a", "b"), bright)
    shares = [next(TrainBatches(split, 64, shift, "cpu", 0, rank=rank, world_size=4).epoch(1))[0] for rank in range(4)]
    assert torch.equal(shares[0], next(TrainBatches(split, 16, shift, "cpu", 0).epoch(1))[0])
    assert not any(torch.equal(*pair) for pair in combinations(shares, 2))


@given(seed=st.integers(0, 2**40))
def test_seed_of_differs_in_the_low_bits(seed):
    seeds = [seed_of(seed, rank) for rank in range(64)]
    assert seeds[0] == seed
    assert len({each & 0xFFFFFFFF for each in seeds}) == 64


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-1, 1), (16, 5), (3, 4)])
def test_train_batches_need_an_image_per_process(batch_size, world_size):
    with pytest.raises(ValueError, match=f"{batch_size}"):
        batches(4, batch_size, rank=0, world_size=world_size)


@pytest.mark.parametrize("device", DEVICES)
def test_train_batches_epoch_depends_on_nothing_that_ran_before(device):
    augmentation = Augmentation(cutout=3)
    made = batches(64, 16, augmentation=augmentation, device=device)
    fresh = list(batches(64, 16, augmentation=augmentation, device=device).epoch(3))
    abandoned = made.epoch(0)
    next(abandoned)
    interleaved = [step for step, _ in zip(made.epoch(3), abandoned, strict=False)]
    torch.rand(100)  # nor on the global generator
    for run in (made.epoch(3), made.epoch(3), interleaved):
        for (images, labels), (expected, expected_labels) in zip(run, fresh, strict=False):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
    assert len(list(made.epoch(3))) == len(fresh) == 4


def test_train_batches_order_differs_by_epoch_and_seed():
    orders = [numbers(batches(64, 16, seed=seed).epoch(epoch)) for seed in range(3) for epoch in range(3)]
    assert all(orders.count(order) == 1 for order in orders)
