"""Training networks with several exits: `fit` trains by a recipe, a `TrainConfig`."""

from eeutils.device import choose_device, default_device
from eeutils.training.config import LossConfig, TrainConfig, list_recipes, recipe
from eeutils.training.history import History
from eeutils.training.loop import fit
