"""What `python -m eeutils.train` left in a folder, read back: the network, and the entry that it could become."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eeutils.data import load_data
from eeutils.data.datasets import image_shape_of, num_classes_of
from eeutils.device import choose_device
from eeutils.errors import IntegrityError
from eeutils.models import MultiExitNet
from eeutils.models.fitting import fitting_arguments
from eeutils.training import list_recipes
from eeutils.weights.registry import TrainingRecord, WeightEntry
from eeutils.weights.tensors import stored_network

_TRAINED_ALONE = {"early_exits": "ic_only", "exits": "exits_only"}


def load_run(folder: Path | str, device: torch.device | str = "cpu") -> MultiExitNet:
    """The network of a finished training run: float32, channels last, in evaluation mode, on `device`.

    Args:
        folder: what `python -m eeutils.train` wrote: `weights.safetensors` and `report.json`.
        device: where the network is wanted.

    Raises:
        FileNotFoundError: if the run did not finish.
        IntegrityError: if a file of the run is damaged.
        ValueError: if report and weights are of different networks, or there is no such device.
    """
    device, run = choose_device(device), read_report(folder)["run"]
    model_args = _model_args(run, num_classes_of(run["data"]), image_shape_of(run["data"]))
    net = stored_network(run["model"], model_args, Path(folder, "weights.safetensors"))
    return net.eval().to(device, memory_format=torch.channels_last)


def read_report(folder: Path | str) -> dict[str, Any]:
    """`report.json` of a training run.

    Raises:
        FileNotFoundError: if the run did not finish.
        IntegrityError: if the report is damaged.
    """
    path = Path(folder, "report.json")
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: the run did not finish; the same training command goes on with it"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not a readable report: {error}") from error


def run_name(run: Mapping[str, Any]) -> str:
    """What the weights of a training run are called, its seed left out.

    `<model>-<pool>-<data>`, then what else differs from the published network: a trigger's class in the data, exits
    trained alone on a backbone that was there already, places of exits, stem, width.
    """
    parts = [run["model"], run.get("pool"), run["data"]]
    parts += [f"trigger{run['trigger']['target']}"] if run.get("poison_share") is not None else []
    parts += [_TRAINED_ALONE.get(run["train"].get("trained"))]
    parts += ["e" + "+".join(map(str, run["exit_after"]))] if run.get("exit_after") else []
    parts += [f"{run['stem']}stem"] if run.get("stem") not in (None, "cifar") else []
    parts += [f"w{run['width']}"] if run.get("width") not in (None, 64) else []
    return "-".join(part for part in parts if part)


def entry_name(run: Mapping[str, Any]) -> str:
    """The name of a run's weights: its own, with its seed unless that is 0."""
    seed = run["train"]["seed"]
    return run_name(run) + (f"-s{seed}" if seed else "")


def asked_arguments(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run, the fields of an `eeutils.train.TrainingRun`, asks of the network's builder."""
    return {name: run[name] for name in ("width", "pool", "stem", "exit_after") if run.get(name) is not None}


def planned_entry(run: Mapping[str, Any], command: str) -> WeightEntry:
    """The entry of a run that nobody has done yet.

    Args:
        run: the fields of an `eeutils.train.TrainingRun`, as a dict.
        command: what does it.
    """
    data = load_data(run["data"])
    return WeightEntry(
        name=entry_name(run),
        model=run["model"],
        model_args=_model_args(run, len(data.classes), data.image_shape),
        data=run["data"],
        classes=data.classes,
        normalization=data.normalization,
        status="not trained",
        command=command,
    )


def entry_of(report: Mapping[str, Any]) -> WeightEntry:
    """The entry of a finished run, without what has to be measured."""
    planned = planned_entry(report["run"], report["command"])
    record = TrainingRecord(
        recipe=_recipe_of(planned),
        config=report["run"]["train"],
        device=report["device"],
        versions=report["versions"],
        seconds=report["seconds"],
        images_per_second=report["images_per_second"],
        share_of_peak=report.get("share_of_peak"),
    )
    return replace(planned, training=record)


def _model_args(run: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    return fitting_arguments(run["model"], num_classes, image_shape) | asked_arguments(run)


def _recipe_of(entry: WeightEntry) -> str:
    """The first word of its training command; a run that was started from Python may have none."""
    first = next(iter(entry.training_arguments), "")
    return first if first in list_recipes() else "custom"
