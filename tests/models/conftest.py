import pytest
import torch
from torch import Tensor, nn

from eeutils import MultiExitNet
from eeutils.models import resnet18_3exits


@pytest.fixture
def net() -> MultiExitNet:
    torch.manual_seed(0)
    return resnet18_3exits(width=4, exit_after=(2, 4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Carrying(nn.Module):
    """Returns a map and the images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(x), x


class Sum(nn.Module):
    """Begins in place, and adds what was carried past the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.activation(x[0]) + x[1]


class OfFirst(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0].mean((2, 3))


@pytest.fixture
def carrying() -> MultiExitNet:
    """A network that carries the images past its first exit."""
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return MultiExitNet([Carrying(), Sum()], {0: OfFirst(), 1: last}).eval()
