"""Small splits, pictures and processes that several test modules share."""

import os
import signal
import socket
import subprocess
import time
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from eeutils.data import Normalization, Split
from eeutils.weights import StoredFile, WeightEntry


def random_split(count: int, size: int = 8, *, channels: int = 3, num_classes: int = 10) -> Split:
    """Noise, always the same, with the classes in turn."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    normalization = Normalization((0.5,) * channels, (0.25,) * channels)
    return Split(images, torch.arange(count) % num_classes, tuple(map(str, range(num_classes))), normalization)


def toy_entry(name: str, **changes) -> WeightEntry:
    """A trained network in the registry, with a file that is nowhere."""
    parts = {"model": "resnet18", "model_args": {"width": 4}, "data": "toy", "status": "trained"}
    parts |= {"normalization": Normalization((0.5,) * 3, (0.25,) * 3), "weights": StoredFile("net/file", "0" * 64, 1)}
    return WeightEntry(name=name, **parts | changes)


def write_pictures(root: Path, classes: Sequence[str] = ("cats", "dogs"), count: int = 20) -> Path:
    """Write PNG files of 40 x 48 pixels, a folder per class; those of later classes are brighter."""
    for brightness, name in zip(np.linspace(0, 128, len(classes)), classes, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 128, (40, 48, 3))
            Image.fromarray((noise + int(brightness)).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Name the parameters and buffers that are not bit-equal to earlier ones."""
    state = net.state_dict()
    assert state.keys() == before.keys()
    return {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}


def run_in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its exit code, or minus the number of the signal that ended it."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_this_process() -> None:
    """End like a process that ran out of memory: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    """Return a port of localhost that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen) -> None:
    """Return once `server` answers at `url`."""
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)
