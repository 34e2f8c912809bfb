"""Small splits, networks, pictures and processes that several test modules share."""

import os
import signal
import socket
import subprocess
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eeutils.analysis import Decisions, Predictions, ThresholdPolicy, score_of
from eeutils.cascade import CascadeResult
from eeutils.data import Normalization, Split, TrainBatches
from eeutils.models import MultiExitNet, create_exit
from eeutils.weights import StoredFile, WeightEntry


def random_split(count: int, size: int = 8, *, channels: int = 3, num_classes: int = 10) -> Split:
    """Noise, always the same, with the classes in turn."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    normalization = Normalization((0.5,) * channels, (0.25,) * channels)
    return Split(images, torch.arange(count) % num_classes, tuple(map(str, range(num_classes))), normalization)


class Applies(nn.Module):
    """A layer that is a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Carrying(nn.Module):
    """Images -> a map of four channels, and the images themselves for a unit behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.convolution(x), "images": x}


class Joined(nn.Module):
    """`layers` on the map that is carried, or on map and images together."""

    def __init__(self, *layers: nn.Module, with_images: bool = False) -> None:
        super().__init__()
        self.layers, self.with_images = nn.Sequential(*layers), with_images

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([x["map"], x["images"]], 1) if self.with_images else x["map"])


def carrying_net() -> MultiExitNet:
    """Two stages that are quick to convert, with a dict between them that the first exit would overwrite."""
    torch.manual_seed(0)
    exits = {0: Joined(nn.ReLU(inplace=True), create_exit("spp", 4, 4)), 1: create_exit("mixed", 4, 4)}
    return MultiExitNet([Carrying(), Joined(nn.Conv2d(7, 4, 3), nn.ReLU(), with_images=True)], exits).eval()


def cut_by_layers() -> MultiExitNet:
    """Units as in `list(vgg16().features)`: one overwrites the input of an exit, a head that of the next unit."""
    units = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)]
    early, middle, last = (create_exit("avg", 8, 4) for _ in range(3))
    return MultiExitNet(units, {0: early, 2: nn.Sequential(nn.ReLU(inplace=True), *middle), 4: last})


def with_statistics(net: MultiExitNet) -> MultiExitNet:
    """Return `net` in evaluation mode, with norms that change their input."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


@dataclass(frozen=True)
class TwoInARow:
    """Custom policy: leave when an exit predicts the class that the exit before it predicted."""

    def leaves(self, logits: Tensor) -> Tensor:
        classes = logits.argmax(-1)
        return classes[-1] == classes[-2] if len(classes) > 1 else torch.zeros_like(classes[-1], dtype=torch.bool)

    def check(self, num_exits: int) -> None:
        if num_exits < 2:
            raise ValueError("two exits are needed to agree")


def between_scores(scores: Tensor, share: float = 0.5) -> float:
    """A threshold that this share of the images (N,) does not reach, halfway between two scores."""
    ordered = torch.cat([torch.zeros(1), scores.sort().values, torch.ones(1)]).double()
    place = int(share * len(scores))
    return float(ordered[place : place + 2].mean().clamp(0, 1))


def dividing(table: Predictions, score: str = "confidence", share: float = 0.5) -> ThresholdPolicy:
    """The thresholds that this share of the images does not reach at each exit."""
    return ThresholdPolicy(tuple(between_scores(each, share) for each in score_of(table.logits[:-1], score)), score)


def assert_same_answers(result: CascadeResult | Decisions, expected: CascadeResult | Decisions) -> None:
    """Every image leaves at the same exit, with the same class."""
    assert torch.equal(result.exit_index, expected.exit_index)
    assert torch.equal(result.predicted, expected.predicted)


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


@contextmanager
def unchanged(*nets: nn.Module, path: Path | None = None) -> Iterator[None]:
    """Assert that parameters and buffers stay bit-equal, and the file at `path`."""
    before, content = [weights(net) for net in nets], path and path.read_bytes()
    yield
    assert [changed(net, kept) for net, kept in zip(nets, before, strict=True)] == [set()] * len(nets)
    assert content == (path and path.read_bytes())


def run_in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its exit code, or minus the number of the signal that ended it."""
    return start_in_child(work)()


def start_in_child(work: Callable[[], object]) -> Callable[[], int]:
    """Return what waits for `run_in_child`; not to be called in threads, as locks of others would stay locked."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_this_process() -> None:
    """End like a process that ran out of memory: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def terminate() -> None:
    """Ask this process to end."""
    os.kill(os.getpid(), signal.SIGTERM)


def at_step(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, action: Callable[[], object]) -> None:
    """Call `action` before this step of the next run that gets there."""
    original = TrainBatches.epoch

    def epochs(self, number):
        for index, batch in enumerate(original(self, number)):
            if (number, index) == (epoch, step):
                monkeypatch.setattr(TrainBatches, "epoch", original)
                action()
            yield batch

    monkeypatch.setattr(TrainBatches, "epoch", epochs)


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
