"""Checkpoints: a training run between two epochs, on disk, whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from eeutils.errors import IntegrityError
from eeutils.files import atomic_path, storage_error

_KEYS = {"epoch", "rows", "config", "data", "net", "optimizer", "scaler"}


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
