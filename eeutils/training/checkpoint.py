"""Checkpoints: a training run on disk, and which run a checkpoint belongs to.

A checkpoint is a dict in a file of `torch.save` with a checksum (`eeutils.files.save_state`):

    net         state_dict of the network as `fit` returns it: with `average_decay`, the average of its weights
    raw         state_dict with the weights that the optimizer updates; the same without `average_decay`
    optimizer   state_dict
    scaler      state_dict of the fp16 loss scaler, empty without one
    epoch       finished epochs
    step        steps done in the epoch after them
    losses      sum of each exit's loss over these steps
    rows        history of the finished epochs
    config      the `TrainConfig`, as JSON has it
    loss        name of a loss function given to `fit`
    data        fingerprint of the dataset
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eeutils.data import ImageData
from eeutils.files import load_state, reading, sha256_of_tensor

_KEYS = ("net", "raw", "optimizer", "scaler", "epoch", "step", "losses", "rows", "config", "loss", "data")
_MACHINE_FIELDS = ("precision", "compile")  # a run may be resumed with other values of these


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed."""
    state = load_state(path)
    with reading(path):
        return {name: state[name] for name in _KEYS}


@contextmanager
def sigterm_noted(path: Path | None) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; the process exits after the block.

    Without a checkpoint, or outside the main thread, SIGTERM keeps its effect.
    """
    noted = threading.Event()
    if path is None or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)
    if noted.is_set():
        raise SystemExit(128 + signal.SIGTERM)


def fingerprint(data: ImageData) -> dict[str, Any]:
    """Fingerprint of a dataset."""
    train = data.train
    return {
        "name": data.name,
        "classes": list(train.classes),
        "shape": list(train.images.shape),
        "images": sha256_of_tensor(train.images),
        "labels": sha256_of_tensor(train.labels),
        # The last digits of a sum depend on the machine.
        "normalization": [round(level, 6) for level in (*train.normalization.mean, *train.normalization.std)],
    }


def difference(saved: dict[str, Any], here: dict[str, Any], frozen: Iterable[str]) -> str:
    """Say in which way a checkpoint belongs to another run than `here`, what this run would save; empty if in none.

    `frozen` are the tensors of the network that this run leaves unchanged.
    """
    before, now = _flat(saved), _flat(here)
    changed = [name for name in now if name not in _MACHINE_FIELDS and before.get(name) != now[name]]
    if changed:
        words = ", ".join(f"{name}={before.get(name)!r} instead of {now[name]!r}" for name in changed)
        is_finished = saved["epoch"] == saved["config"]["epochs"]
        return words + (" and is finished" if is_finished and "epochs" in changed else "")
    if changed := [name for name, value in here["data"].items() if saved["data"].get(name) != value]:
        return f"other data ({saved['data']['name']}: other {', '.join(changed)})"
    ours, theirs = here["raw"], saved["raw"]
    own, other = ({name: tensor.shape for name, tensor in state.items()} for state in (ours, theirs))
    if own != other:
        return "another network"
    if changed := [name for name in frozen if not torch.equal(theirs[name], ours[name].cpu())]:
        return f"another backbone or last exit ({changed[0]} differs)"
    return ""


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with its parts flat, under names such as "loss.weights", and the name of its loss."""
    return pd.json_normalize(run["config"]).to_dict("records")[0] | {"loss": run["loss"]}
