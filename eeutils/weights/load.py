"""Trained networks by name, with what they predict and how they were trained."""

from pathlib import Path

import pandas as pd
import torch

from eeutils.analysis.predictions import Predictions
from eeutils.device import choose_device
from eeutils.models import MultiExitNet
from eeutils.training import History
from eeutils.weights.compare import compare_with, mapped_tensors
from eeutils.weights.fetch import local_file
from eeutils.weights.pickles import read_pickled_tensors
from eeutils.weights.registry import Registry, WeightEntry, default_registry, without_width_and_seed
from eeutils.weights.tensors import put_tensors, stored_network, untrained_network


def list_weights(registry: Registry | None = None) -> list[str]:
    """The names that `load_weights` loads; `weights_table` has those without weights at hand, too."""
    entries = (registry or default_registry()).entries
    return [entry.name for entry in entries if entry.weights is not None]


def weight_entry(name: str, registry: Registry | None = None) -> WeightEntry:
    """Everything that is recorded of the weights `name`, be they trained or not.

    Raises:
        ValueError: if `weights_table()` has no such name.
    """
    return (registry or default_registry()).entry(name)


def weights_table(registry: Registry | None = None) -> pd.DataFrame:
    """One row a name: status, network, size, then test accuracy (0 to 1) and cumulative multiply-adds of each exit."""
    rows = [_row(entry) for entry in (registry or default_registry()).entries]
    return pd.DataFrame(rows, columns=None if rows else ["name"]).set_index("name")


def load_weights(name: str, device: torch.device | str = "cpu", *, registry: Registry | None = None) -> MultiExitNet:
    """A trained network: float32, channels last, in evaluation mode, on `device`.

    The file is verified before it is read; what is not on this disk is fetched into the cache folder first.

    Args:
        name: one of `list_weights()`.
        device: where the network is wanted.
        registry: another one than the repository's.

    Raises:
        ValueError: if the name is unknown, its weights are not trained yet or do not ship (the message gives the
            command), the file holds the weights of another network, or there is no such device.
        IntegrityError: if the repository's file is damaged.
        DataUnavailableError: if no source can deliver the file.
    """
    device, registry = choose_device(device), registry or default_registry()
    entry = _at_hand(name, registry)
    if entry.weights is None:
        raise ValueError(
            f"the weights of {name} do not ship, only what they predict: load_predictions({name!r}, 'test'). "
            + _how_to_train(entry, registry)
        )
    path = local_file(entry.weights, registry.folder)
    if entry.status == "external":
        net = _from_pickle(entry, path)
    else:
        net = stored_network(entry.model, entry.model_args, path)
    return net.eval().to(device, memory_format=torch.channels_last)


def load_predictions(name: str, split: str, *, registry: Registry | None = None) -> Predictions:
    """What the weights `name` answer for every image of a split, computed when they were published.

    Args:
        name: one of `list_weights()`, or a network whose results alone ship.
        split: "val" or "test".
        registry: another one than the repository's.

    Raises:
        ValueError: if there are no such predictions.
        IntegrityError: if the file is damaged.
        DataUnavailableError: if no source can deliver the file.
    """
    registry = registry or default_registry()
    entry = _at_hand(name, registry)
    if not entry.predictions:
        raise ValueError(f"no predictions of {name} ship; make them: predict(load_weights({name!r}), data.{split})")
    if split not in entry.predictions:
        raise ValueError(f"{name} has no predictions for {split!r}; choose from {sorted(entry.predictions)}")
    return Predictions.load(local_file(entry.predictions[split], registry.folder))


def load_history(name: str, *, registry: Registry | None = None) -> History:
    """How the training of the weights `name` went, epoch by epoch.

    Raises:
        ValueError: if there is no history.
        IntegrityError: if the file is damaged.
        DataUnavailableError: if no source can deliver the file.
    """
    registry = registry or default_registry()
    entry = _at_hand(name, registry)
    if entry.history is None:
        raise ValueError(f"the training history of {name} was not published")
    return History.load_csv(local_file(entry.history, registry.folder))


def _at_hand(name: str, registry: Registry) -> WeightEntry:
    entry = registry.entry(name)
    if entry.status == "not trained":
        raise ValueError(f"{name} is not trained yet. {_how_to_train(entry, registry)}")
    return entry


def _from_pickle(entry: WeightEntry, path: Path) -> MultiExitNet:
    """The network with the stem that fits the file, if the entry leaves that open."""
    tensors = read_pickled_tensors(path)
    stems = [entry.model_args["stem"]] if "stem" in entry.model_args else ["imagenet", "cifar"]
    nets = [untrained_network(entry.model, {**entry.model_args, "stem": stem}) for stem in stems]
    reports = [compare_with(net, tensors) for net in nets]
    net, report = max(zip(nets, reports, strict=True), key=lambda pair: len(pair[1].matched))
    put_tensors(net, mapped_tensors(net, report), str(path))
    return net


def _how_to_train(entry: WeightEntry, registry: Registry) -> str:
    kind = without_width_and_seed(entry.name)
    trained = (other.name for other in registry.entries if other.status == "trained")
    sibling = next((name for name in trained if without_width_and_seed(name) == kind), None)
    if sibling is not None:
        instead = f"A trained network of this kind ships: load_weights({sibling!r})."
    else:
        instead = "list_weights() has the networks that can be loaded."
    return f"To train it:\n  {entry.command}\n{instead}"


def _row(entry: WeightEntry) -> dict[str, object]:
    size = entry.weights.size if entry.weights else None
    row = {"name": entry.name, "status": entry.status, "model": entry.model, "data": entry.data}
    row |= {"pool": entry.model_args.get("pool"), "width": entry.model_args.get("width")}
    row["megabytes"] = float("nan") if size is None else size / 1e6
    row |= {f"test_accuracy_exit{number}": share for number, share in enumerate(entry.accuracy.get("test", ()), 1)}
    row |= {f"macs_exit{number}": macs for number, macs in enumerate(entry.macs, 1)}
    return row
