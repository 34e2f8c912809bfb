"""Checkpoints: a training run between two epochs, on disk, whole or not at all; and which run one is of."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.data import ImageData
from eeutils.errors import IntegrityError
from eeutils.files import atomic_path, sha256_of_tensor, storage_error
from eeutils.plain import plain
from eeutils.training.config import TrainConfig

_KEYS = {"epoch", "rows", "config", "data", "net", "optimizer", "scaler"}
# Fields of the config that a run may be resumed with changed: how a machine computes it, not what.
_MACHINE_FIELDS = ("precision", "compile")
# After how many epochs a run ends shapes all of its schedule, so that a finished one cannot simply be made longer.
_HOW_TO_GO_ON = (
    ", which is finished (to train its network further, fit it with another checkpoint; of eeutils.train, "
    "--start-from <its folder> --out <a new one> takes over backbone and last exit)"
)
# What of the data a checkpoint remembers, and how a message says that it was another.
_DATA_DIFFERENCES = {
    "name": "another name",
    "images": "another number or shape of images",
    "classes": "other classes",
    "train_images": "other training images",
    "train_labels": "other training labels",
    "normalization": "another normalization",
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists and dicts of them) to `path`.

    Raises:
        StorageError: if it cannot be written; an earlier checkpoint of that name is then still there.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    except RuntimeError as error:  # how torch reports a full disk
        raise storage_error(path, error) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        IntegrityError: if the file is truncated or no checkpoint.
        OSError: if it is not there or must not be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for a damaged file
        raise IntegrityError(f"{path} is not a readable checkpoint ({error}); remove it to start afresh") from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise IntegrityError(f"{path} is no checkpoint of a training run; use another file, or remove it")
    return state


def data_identity(data: ImageData) -> dict[str, Any]:
    """By what a checkpoint is told from one on other data."""
    train = data.train
    return {
        "name": data.name,
        "images": tuple(train.images.shape),
        "classes": tuple(train.classes),
        "train_images": sha256_of_tensor(train.images),
        "train_labels": sha256_of_tensor(train.labels),
        # Rounded: the very last digits of a sum may depend on the machine.
        "normalization": [round(level, 6) for level in (*train.normalization.mean, *train.normalization.std)],
    }


def difference_between(saved: dict[str, Any], here: dict[str, Any], frozen: Iterable[str]) -> str:
    """What else than this run a checkpoint is of, in words; empty if it is of this one.

    Args:
        saved: the checkpoint.
        here: what this run would save now.
        frozen: the tensors of the network that this run leaves as they are.
    """
    if changed := _changed_fields(saved["config"], here["config"]):
        words = " and ".join(f"{name}={there!r}, not {wanted!r}" for name, (there, wanted) in changed.items())
        is_finished = saved["epoch"] == saved["config"]["epochs"]
        return f"a run with {words}" + (_HOW_TO_GO_ON if is_finished and "epochs" in changed else "")
    data = here["data"] | saved["data"]  # one from before a field was there says nothing about it
    if changed := [words for name, words in _DATA_DIFFERENCES.items() if data[name] != here["data"][name]]:
        return f"a run on other data ({data['name']}): {', '.join(changed)}"
    if _shapes(saved["net"]) != _shapes(here["net"]):
        return "another network"
    if _group_sizes(saved["optimizer"]) != _group_sizes(here["optimizer"]):
        return "a run with another optimizer"
    if changed := [name for name in frozen if not torch.equal(saved["net"][name], here["net"][name].cpu())]:
        return f"a run on another backbone or last exit ({changed[0]} differs)"
    return ""


def _changed_fields(saved: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What each field was in a checkpoint and is here; one from before a field was there has its default."""
    before, now = {**_flat(asdict(TrainConfig())), **_flat(saved)}, _flat(here)
    names = [name for name, value in now.items() if name not in _MACHINE_FIELDS and before[name] != value]
    return {name: (before[name], now[name]) for name in names}


def _flat(config: dict[str, Any], part: str = "") -> dict[str, Any]:
    """Fields of a config and of its parts, such as "loss.weights"; older checkpoints have lists for tuples."""
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{part}{name}.") if isinstance(value, dict) else {part + name: plain(value)}
    return flat


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _group_sizes(state: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]
