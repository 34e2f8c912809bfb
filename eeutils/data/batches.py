"""Training batches made where the data lives: no worker processes, no copies a step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eeutils.data.augmentation import Augmentation, augmented_batch
from eeutils.data.splits import Split


class TrainBatches:
    """Shuffled, augmented batches of a split that is kept on `device`.

    The order and the draws of an epoch depend on `seed` and the epoch's number alone, so a run that is resumed sees
    the batches that it would have seen. All batches have one size: what is left over waits for the next epoch's order.
    """

    def __init__(
        self, split: Split, batch_size: int, augmentation: Augmentation, device: torch.device | str, seed: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.split = split.to(device)
        self.batch_size = min(batch_size, len(split))
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) float32, channels last, and labels (B,), for each step of epoch `number`."""
        device = self.split.images.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.split), generator=generator, device=device)
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images, labels = self.split.images[index], self.split.labels[index]
            yield augmented_batch(images, self.split.normalization, self.augmentation, generator), labels
