import pytest
import torch

from eeutils.models import MultiExitNet, resnet18_3exits


@pytest.fixture
def net() -> MultiExitNet:
    torch.manual_seed(0)
    return resnet18_3exits(width=4, exit_after=(2, 4)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
