"""The layers that backbones and exits are made of."""

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
    """A convolution that keeps the size (up to its stride), then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """`conv_norm` followed by a ReLU."""
    return conv_norm(in_channels, out_channels, kernel, stride, groups).append(nn.ReLU(inplace=True))


def depthwise_separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across them.

    Each is normalised and followed by a ReLU (MobileNet: Howard et al., 2017, arXiv 1704.04861, figure 3).
    """
    return nn.Sequential(
        *conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels),
        *conv_norm_act(in_channels, out_channels, 1),
    )


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every `stride`-th pixel, new channels zero (He et al., section 4.2, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016, arXiv 1512.03385, figure 2).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution.
        shortcut: what the residual is added to; by default the input itself, or where the shape changes a 1x1
            convolution of it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm_act(in_channels, out_channels, 3, stride),
            *conv_norm(out_channels, out_channels, 3),
        )
        if shortcut is None:
            same_shape = stride == 1 and in_channels == out_channels
            shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)
        self.shortcut = shortcut
        # A module, as all ReLUs here are: guided backpropagation has to find them.
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return self.activation(self.residual(x) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Norm, ReLU and convolution, twice, around a shortcut that nothing interrupts.

    The block of WideResNets (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146), with dropout between the
    convolutions. Its answer is not normalised: that is left to whoever reads it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            *conv_norm_act(in_channels, out_channels, 3, stride),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        same_shape = stride == 1 and in_channels == out_channels
        self.projection = None if same_shape else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        active = self.activation(x)
        shortcut = x if self.projection is None else self.projection(active)
        return self.residual(active) + shortcut


def initialise(module: ModuleT) -> ModuleT:
    """Give the convolutions in `module` weights that keep the size of gradients (He et al., 2015); returns `module`."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
