import pytest
import torch
from torch import Tensor

from eeutils import MultiExitNet
from eeutils.models import resnet18_3exits


@pytest.fixture
def net() -> MultiExitNet:
    torch.manual_seed(0)
    return resnet18_3exits(width=4, exit_after=(2, 4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
