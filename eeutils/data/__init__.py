"""Verified data sets in memory, and batches made from them."""

from eeutils.data.augmentation import Augmentation, Normalization
from eeutils.data.batches import TrainBatches
from eeutils.data.datasets import list_data, load_data
from eeutils.data.own import data_from_folder, data_from_tensors, load_image
from eeutils.data.splits import ImageData, Split, stratified_holdout
from eeutils.data.trigger import Trigger, poisoned, stamped

__all__ = [
    "Augmentation",
    "ImageData",
    "Normalization",
    "Split",
    "TrainBatches",
    "Trigger",
    "data_from_folder",
    "data_from_tensors",
    "list_data",
    "load_data",
    "load_image",
    "poisoned",
    "stamped",
    "stratified_holdout",
]
