"""Layers shared by backbones and exits."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_POOLS = {"max": (F.max_pool2d, torch.amax), "avg": (F.avg_pool2d, torch.mean)}


def pool_on_grid(x: Tensor, grid: int, reduce: str) -> Tensor:
    """Feature map (N, C, H, W) -> (N, C, grid, grid), as `adaptive_max_pool2d` and `adaptive_avg_pool2d` do.

    Cells are cut explicitly: ONNX has no adaptive pooling of maps whose size is not a multiple of `grid`.

    Args:
        x: the feature map.
        grid: cells a side.
        reduce: "max" or "avg" within a cell.
    """
    pool, reduced = _POOLS[reduce]
    height, width = x.shape[-2:]
    if height % grid == 0 and width % grid == 0:
        return pool(x, (height // grid, width // grid))
    rows = torch.stack([reduced(x[..., start:end, :], dim=-2) for start, end in _cells(height, grid)], dim=-2)
    return torch.stack([reduced(rows[..., start:end], dim=-1) for start, end in _cells(width, grid)], dim=-1)


def _cells(size: int, grid: int) -> list[tuple[int, int]]:
    """Start and end of each of `grid` cells; they overlap where `size` is not a multiple of `grid`."""
    return [(cell * size // grid, -(-(cell + 1) * size // grid)) for cell in range(grid)]


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
        if reduce not in _POOLS:
            raise ValueError(f"reduce must be one of {sorted(_POOLS)}, got {reduce!r}")
        self.levels = tuple(levels)
        self.reduce = reduce

    @property
    def cells(self) -> int:
        """Values per channel: the number of cells of all levels together."""
        return sum(level * level for level in self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> (N, C * cells), level by level, within a level channel by channel."""
        pooled: dict[int, Tensor] = {}
        source = x
        for level in sorted(self.levels, reverse=True):
            # A coarse cell made of whole finer cells is pooled from those: the same value, and the large map is
            # read once instead of once a level.
            if source.shape[-2] % level or source.shape[-1] % level:
                source = x
            source = pooled[level] = pool_on_grid(source, level, self.reduce)
            if x.shape[-2] % level or x.shape[-1] % level:
                source = x  # cells of uneven size overlap: nothing coarser may be built on them
        return torch.cat([pooled[level].flatten(1) for level in self.levels], dim=1)

    def extra_repr(self) -> str:
        """Describe the layer in `print(net)`."""
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
        return self.mix * pool_on_grid(x, self.grid, "max") + (1 - self.mix) * pool_on_grid(x, self.grid, "avg")

    def extra_repr(self) -> str:
        """Describe the layer in `print(net)`."""
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
