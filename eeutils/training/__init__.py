"""Training networks with several exits."""

from eeutils.device import choose_device, default_device
from eeutils.training.config import LossConfig, TrainConfig, list_recipes, recipe
from eeutils.training.history import History
from eeutils.training.loop import fit

__all__ = ["History", "LossConfig", "TrainConfig", "choose_device", "default_device", "fit", "list_recipes", "recipe"]
