"""Compute that went into a network's training."""

from eeutils.data.augmentation import SMALL_SIDE
from eeutils.train import parsed
from eeutils.weights import Registry, WeightEntry

_TRAINING_IMAGES = {"cifar10": 45_000}  # the rest is for validation


def training_pflop(entry: WeightEntry, registry: Registry) -> float:
    """Return the 1e15 operations of a training run and of the runs it started from.

    Two operations per multiply-add of the whole network: once forward and twice backward, or forward alone where the
    backbone stays as it is. Augmentation, optimizer and validation are not counted.

    Raises:
        KeyError: if the size of the training split is not known.
    """
    config = entry.training.config
    share = 1 - (1 - SMALL_SIDE**2) * config.get("small_images", 0.0)
    passes = 3 if config.get("trained", "all") == "all" else 1
    images = _TRAINING_IMAGES[entry.data] * config["epochs"] * share
    start = parsed(list(entry.training_arguments)).start_from
    before = training_pflop(registry.entry(start), registry) if start in registry.names else 0.0
    return before + 2 * passes * entry.macs[-1] * images / 1e15
