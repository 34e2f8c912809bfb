"""Training batches made where the data lives: no worker processes, no copies a step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eeutils.data.augmentation import Augmentation, augmented_batch
from eeutils.data.splits import Split


def seed_of(seed: int, rank: int) -> int:
    """A seed for each of several processes, its own for the first; they differ in the low bits, all a CPU looks at."""
    return seed ^ (rank * 0x9E3779B1 & 0xFFFFFFFF)


class TrainBatches:
    """Shuffled, augmented batches of a split that is kept on `device`.

    The order and the draws of an epoch depend on `seed` and the epoch's number alone, so a run that is resumed sees
    the batches that it would have seen. All batches have one size: what is left over waits for the next epoch's order.

    Args:
        split: what to learn from.
        batch_size: images a step, of all processes together; fewer if the split has no more, or so that all get equally
            many.
        augmentation: what is drawn anew for every image.
        device: where batches are made.
        seed: of the order and the draws.
        rank: which of `world_size` processes this is; each makes its own share of every batch.
        world_size: how many share the batches.

    Raises:
        ValueError: if there is not an image for each process in a batch.
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.share = min(batch_size, len(split)) // world_size
        if not self.share:
            raise ValueError(
                f"{world_size} processes cannot share {min(batch_size, len(split))} images; start fewer, or ask for a "
                "larger batch"
            )
        self.split = split.to(device)
        self.batch_size = self.share * world_size
        self.augmentation = augmentation
        self.seed = seed
        self.rank = rank

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) float32, channels last, and labels (B,), this process's share of each step."""
        device = self.split.images.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.split), generator=generator, device=device)
        if self.rank:  # the order is everybody's, the draws are this process's own
            generator.manual_seed(seed_of(self.seed * 1_000_003 + number, self.rank))
        for step in range(len(self)):
            start = step * self.batch_size + self.rank * self.share
            index = order[start : start + self.share]
            images, labels = self.split.images[index], self.split.labels[index]
            yield augmented_batch(images, self.split.normalization, self.augmentation, generator), labels
