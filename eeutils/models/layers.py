"""Layers shared by backbones and exits."""

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Reduce = Literal["max", "avg"]

_POOLS = {"max": (F.max_pool2d, torch.amax), "avg": (F.avg_pool2d, torch.mean)}


def pool_on_grid(x: Tensor, grid: int, reduce: Reduce) -> Tensor:
    """Pool a feature map (N, C, H, W) to (N, C, grid, grid), as `adaptive_max_pool2d` and `adaptive_avg_pool2d` do.

    Cells are cut explicitly: ONNX has no adaptive pooling of maps whose size is not a multiple of `grid`.
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
    """Pool a feature map on grids of `level x level` cells and concatenate the cells.

    Spatial pyramid pooling (He et al., ECCV 2014, arXiv 1406.4729, section 2.2). The number of values does not depend
    on the size of the map and, unlike global average pooling, they say *where* something was seen.

    Shapes: (N, C, H, W) float -> (N, C * cells), level by level, within a level channel by channel.
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 4), reduce: Reduce = "max") -> None:
        super().__init__()
        self.levels, self.reduce = tuple(levels), reduce

    @property
    def cells(self) -> int:
        """Number of cells of all levels together."""
        return sum(level * level for level in self.levels)

    def forward(self, x: Tensor) -> Tensor:
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
        return f"levels={self.levels}, reduce={self.reduce!r}"


class MixedPool(nn.Module):
    """Pool a feature map on one grid, each cell a learned mix of its maximum and its mean.

    `mix * max + (1 - mix) * mean` with one `mix` for the whole layer, as in the internal classifiers of Shallow-Deep
    Networks (Kaya et al., ICML 2019, arXiv 1810.07052, section 3; the mix is from Lee et al., AISTATS 2016, arXiv
    1509.08985). It starts at 0.5; the authors' code draws it between 0 and 1.

    Shapes: (N, C, H, W) float -> (N, C, grid, grid).
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        # A scalar takes the feature map's dtype under autocast, and gets no weight decay.
        self.mix = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix * pool_on_grid(x, self.grid, "max") + (1 - self.mix) * pool_on_grid(x, self.grid, "avg")

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (up to its stride), batch normalisation and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def initialise(module: ModuleT) -> ModuleT:
    """Draw the convolutions of `module` so that gradients keep their size (He et al., 2015), and return it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
