"""Training networks with several exits."""

from eeutils.training.config import LossConfig, TrainConfig, list_recipes, recipe
from eeutils.training.history import History
from eeutils.training.loop import default_device, fit

__all__ = ["History", "LossConfig", "TrainConfig", "default_device", "fit", "list_recipes", "recipe"]
