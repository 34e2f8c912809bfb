"""Training batches, made on the device that holds the data: no worker processes, no copy per step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eeutils.data.augmentation import Augmentation, augmented_batch
from eeutils.data.splits import Split


def seed_of(seed: int, rank: int) -> int:
    """Return the seed of one of several processes; seeds differ in the low 32 bits, all that a CPU looks at."""
    return seed ^ (rank * 0x9E3779B1 & 0xFFFFFFFF)


class TrainBatches:
    """Shuffled, augmented batches of a split that is kept on `device`.

    Order and draws of an epoch depend only on `seed` and the epoch's number, so a resumed run sees the same batches.
    All batches have one size: images left over at the end of an epoch are dropped from it.

    Args:
        split: training images.
        batch_size: images per step over all processes; lowered to the size of the split and to a multiple of
            `world_size`.
        augmentation: drawn anew for every image.
        device: for the split and its batches.
        seed: of order and draws.
        rank: number of this process.
        world_size: number of processes that share every batch.
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
        if self.share < 1:
            got = f"{batch_size} of a split of {len(split)}"
            raise ValueError(f"batch_size must give each of {world_size} processes an image, got {got}")
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
