"""A finished run of `python -m eeutils.train`, read back from its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eeutils.data.datasets import image_shape_of, num_classes_of
from eeutils.device import choose_device
from eeutils.files import read_json, reading
from eeutils.models import MultiExitNet
from eeutils.models.registry import fitting_arguments
from eeutils.weights.tensors import put_tensors, read_tensors, untrained_network

_TRAINED_ALONE = {"early_exits": "ic_only", "exits": "exits_only"}


def load_run(folder: Path | str, device: torch.device | str = "cpu") -> MultiExitNet:
    """Load the network of a finished training run: float32, channels last, in evaluation mode, on `device`.

    Args:
        folder: of the run, with `weights.safetensors` and `report.json`.
        device: of the network.

    Raises:
        FileNotFoundError: if the run did not finish.
        IntegrityError: if a file of the run is damaged.
        ValueError: if report and weights are of different networks, or there is no such device.
    """
    device, report = choose_device(device), read_report(folder)
    with reading(Path(folder, "report.json"), keep=ValueError):
        run = report["run"]
        model_args = model_arguments(run, num_classes_of(run["data"]), image_shape_of(run["data"]))
        net = untrained_network(run["model"], model_args)
    path = Path(folder, "weights.safetensors")
    put_tensors(net, read_tensors(path), str(path))
    return net.eval().to(device, memory_format=torch.channels_last)


def read_report(folder: Path | str) -> dict[str, Any]:
    """Read `report.json` of a training run."""
    path = Path(folder, "report.json")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the run did not finish; give the same command to go on with it")
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
    parts += [f"w{run['width']}"] if run.get("width") not in (None, 64) else []
    return "-".join(part for part in parts if part)


def asked_arguments(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for the network's builder that a run (the fields of a `TrainingRun`) states."""
    return {name: run[name] for name in ("width", "pool", "stem", "exit_after") if run.get(name) is not None}


def model_arguments(run: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the arguments that rebuild the network of a run by `create_model`."""
    return fitting_arguments(num_classes, image_shape) | asked_arguments(run)
