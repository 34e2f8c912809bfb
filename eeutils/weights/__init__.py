"""Trained weights by name: `load_weights("resnet18_3exits-spp-cifar10-w16")`."""

from eeutils.weights.load import list_weights, load_history, load_predictions, load_run, load_weights, weight_entry
from eeutils.weights.pickles import PickledTensors, read_pickled_tensors
from eeutils.weights.registry import Registry, StoredFile, TrainingRecord, WeightEntry, default_registry, without_seed
from eeutils.weights.tensors import TensorReport, compare_with, put_tensors, read_tensors
