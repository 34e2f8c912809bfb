"""Datasets in memory, verified, and training batches made from them."""

from eeutils.data.augmentation import Augmentation, Normalization, check_normalized
from eeutils.data.datasets import list_data, load_data
from eeutils.data.images import load_image
from eeutils.data.own import data_from_folder, data_from_hf, data_from_tensors, data_from_torchvision
from eeutils.data.splits import ImageData, Split, TrainBatches, stratified_holdout
from eeutils.data.trigger import Trigger, poisoned, stamped
