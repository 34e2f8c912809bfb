"""Small splits, predictions and histories to draw."""

import matplotlib.pyplot as plt
import pytest
import torch

from eeutils.analysis.predictions import Predictions
from eeutils.data import Normalization, Split
from eeutils.training import History


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def split() -> Split:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4).contiguous()
    return Split(images, torch.tensor([0, 1, 2, 0, 1, 0]), ("a", "b", "c"), Normalization((0.5,) * 3, (0.2,) * 3))


@pytest.fixture
def two_exits() -> Predictions:
    answers = torch.tensor([[0, 1, 0, 0], [0, 1, 2, 0]])
    logits = 2.0 * torch.nn.functional.one_hot(answers, 3).float()
    return Predictions(logits, torch.tensor([0, 1, 2, 2]), torch.tensor([1e6, 2e6], dtype=torch.float64))


@pytest.fixture
def history() -> History:
    rows = [
        {"epoch": epoch, "train_loss": 2.0 / epoch, "train_loss_exit1": 3.0 / epoch, "train_loss_exit2": 1.0 / epoch}
        | {"val_accuracy_exit1": 0.1 * epoch, "val_accuracy_exit2": 0.2 * epoch}
        for epoch in (1, 2, 3)
    ]
    return History(tuple(rows))
