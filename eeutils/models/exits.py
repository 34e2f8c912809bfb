"""Exits: heads that turn the feature map after a unit into logits."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from eeutils.errors import require
from eeutils.fields import check_choice
from eeutils.models.contracts import check_units, on_meta, walk_units
from eeutils.models.layers import MixedPool, Reduce, SpatialPyramidPool, conv_norm_act, initialise
from eeutils.models.multiexit import Features, MultiExitNet, map_tensors

_LARGEST_GRID = 4


class SpatialPyramidExit(nn.Module):
    """Spatial pyramid pooling on grids of 1, 2 and 4 cells a side, and one linear layer.

    The cells of a level are divided by its grid size. Otherwise the linear layer's input, and with it the effective
    learning rate, would be several times that of an average-pool exit, and deep exits would fail to learn.

    Shapes: (N, channels, H, W) -> logits (N, num_classes).
    """

    def __init__(self, channels: int, num_classes: int, reduce: Reduce = "max") -> None:
        super().__init__()
        self.pool = SpatialPyramidPool(levels=(1, 2, 4), reduce=reduce)
        levels = self.pool.levels
        scale = [torch.full((channels * level**2,), 1 / (level * len(levels) ** 0.5)) for level in levels]
        self.register_buffer("scale", torch.cat(scale), persistent=False)
        self.linear = nn.Linear(channels * self.pool.cells, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(x) * self.scale)


def convolutional_exit(channels: int, num_classes: int) -> nn.Sequential:
    """A 3x3 convolution to twice the channels at half the size, then a max pyramid.

    For shallow maps, whose features are too simple for one linear layer. The exits of MSDNet do the same (Huang et al.,
    ICLR 2018, arXiv 1703.09844). It costs a few percent of the network.
    """
    smaller = conv_norm_act(channels, 2 * channels, 3, stride=2)
    return nn.Sequential(smaller, SpatialPyramidExit(2 * channels, num_classes))


class InternalClassifier(nn.Module):
    """The early exit of Shallow-Deep Networks (Kaya et al., ICML 2019, arXiv 1810.07052, section 3).

    A learned mix of max and average pooling reduces the feature map, whose shorter side is `size`, to at most 4x4; one
    linear layer reads it. A map of 4x4 or less stays as it is.

    Shapes: (N, channels, H, W) -> logits (N, num_classes).
    """

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        grid = min(_LARGEST_GRID, size)
        self.pool = MixedPool(grid)
        self.linear = nn.Linear(channels * grid * grid, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(x).flatten(1))


# From channels, classes and shorter side of a feature map.
_EXITS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "avg": lambda c, n, size: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, n)),
    "max": lambda c, n, size: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, n)),
    "spp": lambda c, n, size: SpatialPyramidExit(c, n),
    "spp_avg": lambda c, n, size: SpatialPyramidExit(c, n, reduce="avg"),
    "mixed": lambda c, n, size: InternalClassifier(c, size, n),
    "conv": lambda c, n, size: convolutional_exit(c, n),
}


def list_pools() -> list[str]:
    """Return the names that `create_exit` takes."""
    return sorted(_EXITS)


def create_exit(pool: str, channels: int, num_classes: int, size: int | None = None) -> nn.Module:
    """Build a head that maps a feature map (N, channels, H, W) of any size to logits (N, num_classes).

    Args:
        pool: "avg" and "max" pool the whole map into one cell, "spp_avg" and "spp" into a pyramid of 21 cells; "mixed"
            is the `InternalClassifier`, "conv" a `convolutional_exit`.
        size: shorter side of the map in pixels, if known; "mixed" then has no more cells than the map has pixels.
    """
    check_choice("pool", pool, list_pools())
    return _EXITS[pool](channels, num_classes, _LARGEST_GRID if size is None else size)


def pool_of_each_exit(pool: str, num_exits: int) -> list[str]:
    """Split "conv+spp+avg" into one name per exit, shallowest first; a single name stands for all."""
    pools = pool.split("+")
    require(len(pools) in (1, num_exits), f"pool must name 1 head or {num_exits}, joined by '+', got {pool!r}")
    return pools if len(pools) == num_exits else pools * num_exits


def fresh_exits(
    units: Sequence[nn.Module], after: Collection[int], image_shape: tuple[int, int, int], pool: str, num_classes: int
) -> dict[int, nn.Module]:
    """Build a head for the feature map after each of the units `after`, found by a walk over shapes alone."""
    pools, heads = pool_of_each_exit(pool, len(after)), {}
    if not after:
        return heads
    shapes = on_meta(MultiExitNet(units, {len(units) - 1: nn.Identity()}))
    maps = [features for _, features in walk_units(shapes, image_shape)]
    for unit, name in zip(sorted(after), pools, strict=True):
        got = map_tensors(lambda tensor: tuple(tensor.shape[1:]), maps[unit])
        fits = _is_map(maps[unit], image_shape)
        require(fits, f"unit {unit} must return a map (C, H, W), got {got}; use add_exits")
        _, channels, height, width = maps[unit].shape
        heads[unit] = initialise(create_exit(name, channels, num_classes, min(height, width)))
    return heads


def _is_map(features: Features, image_shape: tuple[int, int, int]) -> bool:
    """Return True for channels first: square images make square maps."""
    if not isinstance(features, Tensor) or features.ndim != 4:
        return False
    _, first, second, third = features.shape
    return image_shape[1] != image_shape[2] or second == third or first != second


def with_heads(
    units: Sequence[nn.Module],
    classifier: nn.Module,
    exit_after: Collection[int],
    image_shape: tuple[int, int, int],
    pool: str | None,
    num_classes: int,
) -> MultiExitNet:
    """Put exits behind some units of a new backbone; the last step of a builder.

    The backbone draws its weights first: with one seed they are the same whatever the exits. `pool` names the heads of
    all exits, None stands for internal classifiers before the network's own `classifier`.
    """
    last = len(units) - 1
    check_units("exit_after", exit_after, range(last))
    initialise(nn.ModuleList([*units, classifier]))
    places = exit_after if pool is None else [*exit_after, last]
    heads = fresh_exits(units, places, image_shape, pool or "mixed", num_classes)
    return MultiExitNet(units, {last: classifier} | heads)
