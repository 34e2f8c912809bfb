"""Trained networks: by name with predictions and histories, or from the folder of a run of `eeutils.train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eeutils.analysis.predictions import Predictions
from eeutils.data.datasets import find_dataset
from eeutils.device import choose_device
from eeutils.errors import require
from eeutils.fields import check_choice
from eeutils.files import read_json, reading
from eeutils.models import MultiExitNet
from eeutils.models.registry import fitting_arguments
from eeutils.training import History
from eeutils.weights.fetch import local_file
from eeutils.weights.pickles import read_pickled_tensors
from eeutils.weights.registry import Registry, WeightEntry, default_registry, without_width_and_seed
from eeutils.weights.tensors import compare_with, mapped_tensors, put_file, put_tensors, untrained_network


def list_weights(registry: Registry | None = None) -> list[str]:
    """Return the names that `load_weights` loads; `weights/README.md` also has those without weights."""
    return [entry.name for entry in (registry or default_registry()).entries if entry.weights is not None]


def weight_entry(name: str, registry: Registry | None = None) -> WeightEntry:
    """Return all that is recorded of the weights `name`, trained or not."""
    return (registry or default_registry()).entry(name)


def load_weights(name: str, device: torch.device | str = "cpu", *, registry: Registry | None = None) -> MultiExitNet:
    """Load a trained network: float32, channels last, in evaluation mode, on `device`.

    `name` is one of `list_weights()`. A file that is not on this disk is fetched into the cache folder, unless
    EEUTILS_OFFLINE is set.

    Raises:
        ValueError: if the name is unknown, or its weights do not ship (the message gives the command that trains them).
        IntegrityError: if the repository's file is damaged.
        DataUnavailableError: if no source can deliver the file.
    """
    device, registry = choose_device(device), registry or default_registry()
    entry = _at_hand(name, registry)
    if entry.weights is None:  # not `require`, here and below: its message looks through the registry
        instead = f"load_predictions({name!r}, 'test'). {_how_to_train(entry, registry)}"
        raise ValueError(f"the weights of {name} do not ship, only what they predict: {instead}")
    if entry.status == "external":
        net = _from_pickle(entry, local_file(entry.weights, registry.folder, read_pickled_tensors))
    else:
        net = untrained_network(entry.model, entry.model_args)
        put_file(net, local_file(entry.weights, registry.folder))
    return net.eval().to(device, memory_format=torch.channels_last)


def load_predictions(name: str, split: str, *, registry: Registry | None = None) -> Predictions:
    """Load the predictions of the weights `name` for "val" or "test", computed when they were published.

    There are some also for networks whose weights do not ship. Errors are those of `load_weights`.
    """
    registry = registry or default_registry()
    entry = _at_hand(name, registry)
    remedy = f"make them: predict(load_weights({name!r}), data.{split})"
    require(bool(entry.predictions), f"no predictions of {name} ship; {remedy}")
    check_choice("split", split, sorted(entry.predictions))
    return Predictions.load(local_file(entry.predictions[split], registry.folder))


def load_history(name: str, *, registry: Registry | None = None) -> History:
    """Load the training history of the weights `name`, epoch by epoch."""
    registry = registry or default_registry()
    entry = _at_hand(name, registry)
    require(entry.history is not None, f"the training history of {name} was not published")
    return History.load_csv(local_file(entry.history, registry.folder))


def _at_hand(name: str, registry: Registry) -> WeightEntry:
    entry = registry.entry(name)
    if entry.status == "not trained":
        raise ValueError(f"{name} is not trained yet. {_how_to_train(entry, registry)}")
    return entry


def _from_pickle(entry: WeightEntry, path: Path) -> MultiExitNet:
    """Load the network of a pickle, with the stem that fits if the entry leaves that open."""
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
    instead = f"One of this kind ships: load_weights({sibling!r})" if sibling else "list_weights() has the others"
    return f"To train it:\n  {entry.command}\n{instead}."


_TRAINED_ALONE = {"early_exits": "ic_only", "exits": "exits_only"}
_PUBLISHED_WIDTHS = {"mobilenet": 32, "resnet56": 16, "wideresnet32_4": 16}  # 64 for all others


def load_run(folder: Path | str) -> MultiExitNet:
    """Load the network of a training run: float32, channels last, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: if the run did not finish: `weights.safetensors` or `report.json` is missing.
        IntegrityError: if a file of the run is damaged.
    """
    report = read_report(folder)
    with reading(Path(folder, "report.json"), keep=ValueError):
        run = report["run"]
        data = find_dataset(run["data"])
        net = untrained_network(run["model"], model_arguments(run, data.num_classes, data.image_shape))
    put_file(net, Path(folder, "weights.safetensors"))
    return net.eval().to(memory_format=torch.channels_last)


def read_report(folder: Path | str) -> dict[str, Any]:
    """Read `report.json` of a training run."""
    path = Path(folder, "report.json")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the run did not finish; run the same command again to resume it")
    return read_json(path)


def run_name(run: Mapping[str, Any]) -> str:
    """Return the name of a run's weights without its seed.

    `<model>-<pool>-<data>`, then all that differs from the published network: the class of a trigger in the data, exits
    trained alone on a finished backbone, places of exits, stem, width.
    """
    parts = [run["model"], run.get("pool"), run["data"]]
    parts += [f"trigger{run['trigger']['target']}"] if run.get("poison_share") is not None else []
    parts += [_TRAINED_ALONE.get(run["train"].get("trained"))]
    parts += ["e" + "+".join(map(str, run["exit_after"]))] if run.get("exit_after") else []
    parts += [f"{run['stem']}stem"] if run.get("stem") not in (None, "cifar") else []
    published = _PUBLISHED_WIDTHS.get(run["model"].removesuffix("_sdn"), 64)
    parts += [f"w{run['width']}"] if run.get("width") not in (None, published) else []
    return "-".join(part for part in parts if part)


def asked_arguments(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for the network's builder that a run (the fields of a `TrainingRun`) states."""
    return {name: run[name] for name in ("width", "pool", "stem", "exit_after") if run.get(name) is not None}


def model_arguments(run: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the arguments that rebuild the network of a run by `create_model`."""
    return fitting_arguments(num_classes, image_shape) | asked_arguments(run)
