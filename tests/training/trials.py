"""Training runs that fail from outside: `python trials.py {killed,full_disk} FOLDER SEED`.

Each run is a forked child, so that torch is imported once however often a child is killed.
"""

import io
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from eeutils.data import ImageData, load_data
from eeutils.errors import StorageError
from eeutils.models import resnet18_3exits
from eeutils.training import fit, loop, recipe
from eeutils.training.checkpoint import load_checkpoint

EPOCHS, MOST_KILLS = 5, 4


@cache
def some_digits() -> ImageData:
    """128 images to train on, 32 to validate."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(slice(0, 128)), val=digits.val.take(slice(0, 32)))


def run(folder: Path) -> None:
    """Train a tiny network on some digits; leave its weights and losses in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = resnet18_3exits(width=2, pool="spp", stem="imagenet")
    history = fit(
        net, some_digits(), recipe("digits", epochs=EPOCHS), checkpoint=folder / "checkpoint.pt", progress=False
    )
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "weights.safetensors")
    (folder / "history.json").write_text(json.dumps(history.rows))


def forked(task: Callable[[], None]) -> int:
    """Start `task` in a child process."""
    child = os.fork()
    if child:
        return child
    try:
        task()
    except SystemExit as error:
        os._exit(error.code)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def kill_during_write() -> None:
    """Kill this process when the third checkpoint is half written."""
    written, fsync = [], os.fsync

    def half_written(file: int) -> None:
        written.append(file)
        if len(written) == 3:
            os.truncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    os.fsync = half_written


def killed(folder: Path, seed: int) -> None:
    """Kill a run during a write, then end it at random moments, and let it finish; beside it one is undisturbed."""

    def first() -> None:
        kill_during_write()
        run(folder)

    def place() -> tuple[int, int]:
        state = load_checkpoint(folder / "checkpoint.pt")
        return state["epoch"], state["step"]

    _, status = os.waitpid(forked(lambda: run(folder.with_name("undisturbed"))), 0)
    assert status == 0
    draw = random.Random(seed)
    _, status = os.waitpid(forked(first), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    places, ends = [place()], []
    for number in range(MOST_KILLS):
        child = forked(lambda: run(folder))
        time.sleep(draw.uniform(0.1, 0.6))
        os.kill(child, (signal.SIGKILL, signal.SIGTERM)[number % 2])
        _, status = os.waitpid(child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
        places.append(place())
    _, status = os.waitpid(forked(lambda: run(folder)), 0)
    assert status == 0
    print(json.dumps({"ends": ends, "places": places}))


def full_disk(folder: Path, seed: int) -> None:
    """Let the disk be full from the third checkpoint on: no file may grow beyond half of one."""
    del seed
    save, calls = loop.save_state, []

    def save_with_little_room(path: Path, state: dict) -> None:
        calls.append(path)
        if len(calls) == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            half = path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
        save(path, state)

    loop.save_state = save_with_little_room
    try:
        run(folder)
    except StorageError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    action, place, chosen_seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    some_digits()  # once, in the parent; the same goes for what saving and an optimizer import
    torch.optim.SGD([torch.zeros(1)])
    torch.save({}, io.BytesIO())
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0
    {"killed": killed, "full_disk": full_disk}[action](place, chosen_seed)
