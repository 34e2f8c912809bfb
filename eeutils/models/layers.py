"""Layers shared by backbones and exits."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ADAPTIVE_POOLS = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}


class SpatialPyramidPool(nn.Module):
    """Pool a feature map on grids of several sizes and concatenate the cells.

    Spatial pyramid pooling (He et al., ECCV 2014, arXiv 1406.4729, section 2.2): whatever the size of the map,
    the result has `sum(level ** 2 for level in levels)` values per channel, and unlike global average pooling it
    still says *where* something was seen.

    Args:
        levels: grid sizes, one pooled grid of `level x level` cells each.
        reduce: "max" (the paper's) or "avg" within a cell.

    Shapes: (N, C, H, W) float, H and W of 1 or more -> (N, C * cells).
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 4), reduce: str = "max") -> None:
        super().__init__()
        if not levels or any(level < 1 for level in levels):
            raise ValueError(f"levels must be one or more positive grid sizes, got {tuple(levels)}")
        if reduce not in _ADAPTIVE_POOLS:
            raise ValueError(f"unknown reduce {reduce!r}; choose from {sorted(_ADAPTIVE_POOLS)}")
        self.levels = tuple(levels)
        self.reduce = reduce

    @property
    def cells(self) -> int:
        """Values per channel: the number of cells of all levels together."""
        return sum(level * level for level in self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> (N, C * cells), level by level, within a level channel by channel."""
        pool = _ADAPTIVE_POOLS[self.reduce]
        pooled: dict[int, Tensor] = {}
        source = x
        for level in sorted(self.levels, reverse=True):
            # A coarse cell made of whole finer cells is pooled from those: the same value, and the large map is
            # read once instead of once a level.
            if source.shape[-2] % level or source.shape[-1] % level:
                source = x
            source = pooled[level] = pool(source, level)
            if x.shape[-2] % level or x.shape[-1] % level:
                source = x  # cells of uneven size overlap: nothing coarser may be built on them
        return torch.cat([pooled[level].flatten(1) for level in self.levels], dim=1)

    def extra_repr(self) -> str:
        """What `print(net)` says of this layer."""
        return f"levels={self.levels}, reduce={self.reduce!r}"


class MixedPool(nn.Module):
    """Pool a feature map on one grid, each cell a learned mix of its maximum and its mean.

    `mix * max + (1 - mix) * mean` with one `mix` for the whole layer, as in the internal classifiers of Shallow-Deep
    Networks (Kaya et al., ICML 2019, arXiv 1810.07052, section 3; the mix is from Lee et al., AISTATS 2016, arXiv
    1509.08985). It is 0.5 before training; the authors' code draws it between 0 and 1.

    Args:
        grid: cells a side.

    Shapes: (N, C, H, W) float, H and W of 1 or more -> (N, C, grid, grid).
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        if grid < 1:
            raise ValueError(f"grid must be positive, got {grid}")
        self.grid = grid
        # Without a dimension: it then takes the feature map's dtype under autocast, and no weight decay.
        self.mix = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> (N, C, grid, grid)."""
        return self.mix * F.adaptive_max_pool2d(x, self.grid) + (1 - self.mix) * F.adaptive_avg_pool2d(x, self.grid)

    def extra_repr(self) -> str:
        """What `print(net)` says of this layer."""
        return f"grid={self.grid}"


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (up to its stride), then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """`conv_norm` followed by a ReLU."""
    return conv_norm(in_channels, out_channels, kernel, stride, groups).append(nn.ReLU(inplace=True))


def initialise(module: ModuleT) -> ModuleT:
    """Draw the convolutions of `module` so that gradients keep their size (He et al., 2015), and return it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
