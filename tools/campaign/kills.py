"""Processes killed at random moments of training, fetching and publishing, and the call after them."""

import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch

from eeutils.data import load_data
from eeutils.data.cache import Content, RawData, cached_data
from eeutils.download import Source, download
from eeutils.files import load_tensors, save_tensors, sha256_of_file, sha256_of_tensor
from eeutils.models import create_model
from eeutils.train import TrainingRun, train
from eeutils.training import fit, loop, recipe
from eeutils.weights import Registry, StoredFile
from eeutils.weights.fetch import local_file
from tools.campaign.children import Outcome, finish, start
from tools.publish import publish

_KILLS = 3  # of a sample
_SERVED = random.Random(0).randbytes(1 << 22)
_CHUNK, _PAUSE_S = 1 << 18, 0.02

Task = Callable[[Path], object]


@contextmanager
def kills(run: Path, folder: Path) -> Iterator[dict[str, Callable[[list[random.Random]], list[Outcome]]]]:
    """Yield the kinds of samples: a task is killed three times, then left alone.

    Args:
        run: folder of a finished training run, to publish.
        folder: for the files of the tasks.
    """
    with _server() as url:
        tasks = {
            "training": _train,
            "fetching weights": partial(_fetch_weights, url),
            "fetching data": partial(_fetch_data, url),
            "publishing": partial(_publish, run),
        }
        yield {f"three kills: {name}": _Kills(task, folder / name) for name, task in tasks.items()}


def train_tiny(folder: Path) -> None:
    """Train a tiny network for one epoch, as `python -m eeutils.train` does."""
    config = recipe("digits", epochs=1)
    train(TrainingRun("resnet18_2exits", "avg", width=2, data="digits", out=folder, device="cpu", train=config))


class _Kills:
    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder, started = task, folder, time.monotonic()
        self.expected = self._result(folder / "undisturbed")
        self.seconds = time.monotonic() - started

    def __call__(self, draws: list[random.Random]) -> list[Outcome]:
        return [self._sample(draw) for draw in draws]

    def _sample(self, draw: random.Random) -> Outcome:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            for _ in range(_KILLS):
                child = start(lambda: self.task(Path(name)))
                time.sleep(draw.uniform(0, self.seconds))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            try:
                found = self._result(Path(name))
                different = {
                    path for path in found.keys() | self.expected if found.get(path) != self.expected.get(path)
                }
                answer = f"other or left behind: {sorted(different)}" if different else "equal"
            except ChildProcessError as error:
                answer = str(error)
        return Outcome(answer, time.monotonic() - started, 0)

    def _result(self, folder: Path) -> dict[str, str]:
        """Let the task finish; return its files that are not empty, and what is in them."""
        folder.mkdir(parents=True, exist_ok=True)
        finish(lambda: self.task(folder))
        return {
            str(path.relative_to(folder)): _content(path)
            for path in folder.rglob("*")
            if path.is_file() and path.stat().st_size
        }


def _content(path: Path) -> str:
    """Return a hash of the file's content. Checkpoints hold durations; safetensors writes metadata in any order."""
    if path.suffix == ".pt":
        return ""
    if path.suffix != ".safetensors":
        return sha256_of_file(path)
    tensors, metadata = load_tensors(path)
    return str(sorted((name, sha256_of_tensor(tensor)) for name, tensor in tensors.items())) + str(
        sorted(metadata.items())
    )


def _train(folder: Path) -> None:
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0
    digits, config = load_data("digits"), recipe("digits", epochs=3)
    data = replace(digits, train=digits.train.take(slice(0, 128)), val=digits.val.take(slice(0, 32)))
    torch.manual_seed(0)
    net = create_model("resnet18_3exits", width=2, pool="spp", stem="imagenet")
    fit(net, data, config, checkpoint=folder / "checkpoint.pt", device="cpu", progress=False)
    save_tensors(folder / "weights.safetensors", net.state_dict())


def _fetch_weights(url: str, folder: Path) -> None:
    os.environ["EEUTILS_CACHE"] = str(folder)
    sha256 = hashlib.sha256(_SERVED).hexdigest()
    local_file(StoredFile("net/weights.bin", sha256, len(_SERVED), (url,)), None)


def _fetch_data(url: str, folder: Path) -> None:
    os.environ["EEUTILS_CACHE"] = str(folder)

    def fetch(work: Path) -> RawData:
        download(url, work / "file", lambda path: None, size=len(_SERVED))
        return {"images": torch.frombuffer(bytearray((work / "file").read_bytes()), dtype=torch.uint8)}

    cached_data("toy", {"images": Content((None,))}, lambda work: [Source("site", partial(fetch, work), "")])


def _publish(run: Path, folder: Path) -> None:
    publish(run, Registry.load(folder))


@contextmanager
def _server() -> Iterator[str]:
    """Serve `_SERVED` on localhost, slowly, from a process of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            begin = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(_SERVED) - begin))
            self.send_header("Content-Range", f"bytes {begin}-{len(_SERVED) - 1}/{len(_SERVED)}")
            self.end_headers()
            for at in range(begin, len(_SERVED), _CHUNK):
                self.wfile.write(_SERVED[at : at + _CHUNK])
                time.sleep(_PAUSE_S)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client was killed
    server.timeout, campaign = 1.0, os.getpid()

    def serve() -> None:
        while os.getppid() == campaign:  # it may be killed, too
            server.handle_request()

    child = start(serve)
    server.server_close()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
