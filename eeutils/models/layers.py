"""The layers that backbones and exits are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ADAPTIVE_POOLS = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}


class SpatialPyramidPool(nn.Module):
    """Pool a feature map on grids of several sizes and concatenate the cells.

    Spatial pyramid pooling (He et al., ECCV 2014, arXiv 1406.4729, section 2.2): whatever the size of the map,
    the result has `sum(level ** 2 for level in levels)` values a channel, and unlike global average pooling it
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
        """Values a channel: the number of cells of all levels together."""
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


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (up to its stride), then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """`conv_norm` followed by a ReLU."""
    return conv_norm(in_channels, out_channels, kernel, stride).append(nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016, arXiv 1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm_act(in_channels, out_channels, 3, stride),
            *conv_norm(out_channels, out_channels, 3),
        )
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return F.relu(self.residual(x) + self.shortcut(x))
