"""Training runs that are made to fail from outside: `python trials.py {killed,full_disk} FOLDER SEED`.

Each run is a forked child, so that torch is imported once however often the child is killed.
"""

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
from eeutils.training import checkpoint, fit, loop, recipe

EPOCHS, MOST_KILLS = 8, 4


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
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def kill_during_write() -> None:
    """From here on the third checkpoint is half written when the power fails."""
    save, written = torch.save, []

    def save_half(state: dict, path: Path) -> None:
        save(state, path)
        written.append(path)
        if len(written) == 3:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half


def killed(folder: Path, seed: int) -> None:
    """Kill a run during a write, then at random moments, and let it finish at last; beside it one is undisturbed."""

    def first() -> None:
        kill_during_write()
        run(folder)

    _, status = os.waitpid(forked(lambda: run(folder.with_name("undisturbed"))), 0)
    assert status == 0
    draw, kills = random.Random(seed), 0
    _, status = os.waitpid(forked(first), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    epochs = [checkpoint.load_checkpoint(folder / "checkpoint.pt")["epoch"]]
    for _ in range(MOST_KILLS):
        child = forked(lambda: run(folder))
        time.sleep(draw.uniform(0.1, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        epochs.append(checkpoint.load_checkpoint(folder / "checkpoint.pt")["epoch"])
    _, status = os.waitpid(forked(lambda: run(folder)), 0)
    assert status == 0
    print(json.dumps({"kills": kills, "epochs": epochs}))


def full_disk(folder: Path, seed: int) -> None:
    """Let the disk be full from the third checkpoint on: no file may grow beyond half of one."""
    del seed
    save, calls = checkpoint.save_checkpoint, []

    def save_with_less_and_less_room(path: Path, state: dict) -> None:
        calls.append(path)
        if len(calls) == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            half = path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
        save(path, state)

    loop.save_checkpoint = save_with_less_and_less_room
    try:
        run(folder)
    except StorageError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    action, place, chosen_seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    some_digits()  # once, in the parent, so that a child is soon at work; the same goes for what an optimiser imports
    torch.optim.SGD([torch.zeros(1)])
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0  # every epoch, however soon it is done
    {"killed": killed, "full_disk": full_disk}[action](place, chosen_seed)
