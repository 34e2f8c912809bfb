"""Exits: the heads that turn the feature map after a unit into logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeutils.models.layers import SpatialPyramidPool


def average_pool_exit(channels: int, num_classes: int) -> nn.Sequential:
    """Global average pooling and one linear layer: ResNet's own classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class SpatialPyramidExit(nn.Module):
    """Spatial pyramid max pooling on grids of 1, 2 and 4 cells a side, and one linear layer.

    The cells of a level are divided by its grid size. Without that the 21 values a channel make the linear layer's
    input, and with it the effective learning rate, several times that of an average-pool exit, and deep exits fail to
    learn at the rates the backbone wants.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = SpatialPyramidPool(levels=(1, 2, 4), reduce="max")
        levels = self.pool.levels
        scale = [torch.full((channels * level**2,), 1 / (level * len(levels) ** 0.5)) for level in levels]
        self.register_buffer("scale", torch.cat(scale), persistent=False)
        self.linear = nn.Linear(channels * self.pool.cells, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> logits (N, num_classes)."""
        return self.linear(self.pool(x) * self.scale)


_EXITS: dict[str, Callable[[int, int], nn.Module]] = {"avg": average_pool_exit, "spp": SpatialPyramidExit}


def list_pools() -> list[str]:
    """The names that `create_exit` knows."""
    return sorted(_EXITS)


def create_exit(pool: str, channels: int, num_classes: int) -> nn.Module:
    """A head for a feature map (N, channels, H, W) that answers logits (N, num_classes).

    Raises:
        ValueError: if `pool` is not one of `list_pools()`.
    """
    if pool not in _EXITS:
        raise ValueError(f"unknown pool {pool!r}; choose from {list_pools()}")
    return _EXITS[pool](channels, num_classes)
