"""Networks as units and exits."""

from eeutils.models.exits import create_exit, list_pools
from eeutils.models.layers import SpatialPyramidPool
from eeutils.models.multiexit import MultiExitNet, add_exits, drop_exits, truncate
from eeutils.models.registry import create_model, list_models, register_model
from eeutils.models.resnet import resnet18, resnet18_2exits, resnet18_3exits

__all__ = [
    "MultiExitNet",
    "SpatialPyramidPool",
    "add_exits",
    "create_exit",
    "create_model",
    "drop_exits",
    "list_models",
    "list_pools",
    "register_model",
    "resnet18",
    "resnet18_2exits",
    "resnet18_3exits",
    "truncate",
]
