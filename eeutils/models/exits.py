"""Exits: the heads that turn the feature map after a unit into logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeutils.models.layers import MixedPool, SpatialPyramidPool, conv_norm_act

_LARGEST_GRID = 4


def average_pool_exit(channels: int, num_classes: int) -> nn.Sequential:
    """Global average pooling and one linear layer: ResNet's own classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class SpatialPyramidExit(nn.Module):
    """Spatial pyramid max pooling on grids of 1, 2 and 4 cells a side, and one linear layer.

    The cells of a level are divided by its grid size. Without that the 21 values per channel make the linear layer's
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


def convolutional_exit(channels: int, num_classes: int) -> nn.Sequential:
    """A 3x3 convolution to twice the channels at half the size, then a pyramid.

    For shallow maps, whose features are too simple to be told apart by one linear layer: the head makes better ones of
    its own, as those of MSDNet do (Huang et al., ICLR 2018, arXiv 1703.09844), at a few percent of a network's cost.
    """
    return nn.Sequential(
        conv_norm_act(channels, 2 * channels, 3, stride=2), SpatialPyramidExit(2 * channels, num_classes)
    )


class InternalClassifier(nn.Module):
    """The early exit of Shallow-Deep Networks (Kaya et al., ICML 2019, arXiv 1810.07052, section 3).

    The feature map is reduced to at most 4x4 by a learned mix of max and average pooling; one linear layer reads it.
    A map of 4x4 or less is read as it is: there the mix has nothing to learn.

    Args:
        channels: of the feature map.
        size: of its shorter side, in pixels.
        num_classes: logits per image.
    """

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        grid = min(_LARGEST_GRID, size)
        self.pool = MixedPool(grid)
        self.linear = nn.Linear(channels * grid * grid, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> logits (N, num_classes)."""
        return self.linear(self.pool(x).flatten(1))


def _internal_classifier(channels: int, num_classes: int, size: int | None) -> nn.Module:
    return InternalClassifier(channels, _LARGEST_GRID if size is None else size, num_classes)


_EXITS: dict[str, Callable[[int, int, int | None], nn.Module]] = {
    "avg": lambda channels, num_classes, size: average_pool_exit(channels, num_classes),
    "spp": lambda channels, num_classes, size: SpatialPyramidExit(channels, num_classes),
    "mixed": _internal_classifier,
    "conv": lambda channels, num_classes, size: convolutional_exit(channels, num_classes),
}


def list_pools() -> list[str]:
    """The names that `create_exit` knows."""
    return sorted(_EXITS)


def check_pool(pool: str) -> None:
    """See that there is such a head.

    Raises:
        ValueError: if `pool` is not one of `list_pools()`.
    """
    if pool not in _EXITS:
        raise ValueError(f"unknown pool {pool!r}; choose from {list_pools()}")


def pool_of_each_exit(pool: str, num_exits: int) -> list[str]:
    """What `pool` asks for: one of `list_pools()` for all exits, or one per exit joined by "+", shallowest first.

    Raises:
        ValueError: if one of them is unknown, or they are not as many as the exits.
    """
    pools = pool.split("+")
    for each in pools:
        check_pool(each)
    if len(pools) not in (1, num_exits):
        raise ValueError(f"pool={pool!r} names {len(pools)} heads for a network with {num_exits} exits")
    return pools if len(pools) == num_exits else pools * num_exits


def create_exit(pool: str, channels: int, num_classes: int, size: int | None = None) -> nn.Module:
    """A head for a feature map (N, channels, H, W) that answers logits (N, num_classes).

    Every head answers maps of any size. "mixed" (`InternalClassifier`) has parameters for a grid of 4x4 cells, which
    is more than a smaller map has to say: where `size` is known it has no more cells than the map has pixels.

    Args:
        pool: how the feature map is pooled, one of `list_pools()`.
        channels: of the feature map.
        num_classes: logits per image.
        size: pixels of the map's shorter side, if known.

    Raises:
        ValueError: if `pool` is not one of `list_pools()`.
    """
    check_pool(pool)
    return _EXITS[pool](channels, num_classes, size)
