"""Checkpoints: a training run between two epochs, on disk, whole or not at all; and which run one is of."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.data import ImageData
from eeutils.data.sources import sha256
from eeutils.errors import IntegrityError
from eeutils.files import atomic_path, storage_error
from eeutils.training.config import TrainConfig

_KEYS = {"epoch", "rows", "config", "data", "net", "optimizer", "scaler"}
# Fields of the config that a run may be resumed with changed: how a machine computes it, not what.
_MACHINE_FIELDS = ("precision", "compile")
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
        "train_images": sha256(train.images),
        "train_labels": sha256(train.labels),
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
    config = _filled(saved["config"], asdict(TrainConfig()))
    changed = [name for name, value in here["config"].items() if name not in _MACHINE_FIELDS and config[name] != value]
    if changed:
        return f"a run with another {', '.join(changed)}"
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


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint; one from before a field was there has its default, also within a part."""
    parts = {name: _filled(config.get(name, {}), part) for name, part in defaults.items() if isinstance(part, dict)}
    return {**defaults, **config, **parts}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _group_sizes(state: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]
