"""Shared fixtures: seeds, an empty cache, a misbehaving site, CIFAR-10."""

import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen; before anyone imports matplotlib
os.environ.pop("EEUTILS_QUICK", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has a core; before anyone imports torch

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from eeutils import load_data
from eeutils.data import ImageData
from eeutils.errors import DataUnavailableError, StorageError

pytest_plugins = ["tests.registry_fixtures"]

settings.register_profile("eeutils", deadline=None, max_examples=25)  # nothing here is about time
settings.load_profile("eeutils")


# Files that start processes, train or run shipped networks: seconds each, left out of `make test-fast`.
LONG = """
adapt adapt_uses benchmarks campaign colab demo engines export hub interruptions notebook notebooks parallel photos
publish readme serve shipped structure train_cli train_missing widgets
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in LONG.split():
            item.add_marker("long")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Draw the same numbers in every test, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """Compute on the CPU by default, also if there is a GPU: only there are results equal bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eeutils.device.default_device", lambda: torch.device("cpu"))
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes in this test; they run as they are."""
    graphs, compiled = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiled(forward, backend=backend))
    torch.compiler.reset()  # what other tests compiled counts against a limit
    return graphs


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EEUTILS_CACHE", str(folder))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system of 1 MB, or remount it with other options; returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (mount := subprocess.run(words, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")

    def with_options(options: str = "rw") -> Path:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        return folder

    yield with_options
    subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(frozen=True)
class Answer:
    """Answer of a site after `delay_s`; it falls silent after `silent_after` bytes, or hangs up after `ends_after`."""

    body: bytes
    kind: str = "application/octet-stream"
    status: int = 200
    silent_after: int | None = None
    ends_after: int | None = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    resumes: bool = False


@dataclass
class Site:
    """Answers by path, one for each request and the last one forever, and the requests made."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def say(self, path: str, body: bytes, **kwargs) -> str:
        """Answer `path` with `body`; `kwargs` are those of `Answer`. Returns the address."""
        self.answers[path] = [Answer(body, **kwargs)]
        return self.url + path

    def then_say(self, path: str, body: bytes, **kwargs) -> None:
        """Answer the next request of `path` with `body`."""
        self.answers[path].append(Answer(body, **kwargs))

    def next_answer(self, path: str) -> Answer:
        answers = self.answers.get(path, [Answer(b"no such page", "text/plain", 404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site on localhost that can misbehave."""
    site, over = Site(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            site.ranges.append(self.headers["Range"])
            answer = site.next_answer(self.path)
            over.wait(answer.delay_s)
            start = int(self.headers["Range"][6:-1]) if self.headers["Range"] and answer.resumes else 0
            status = (206 if start < len(answer.body) else 416) if start else answer.status
            headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body[start:]))}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}"
            self.send_response(status)
            for name, value in {**headers, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body[start:][: answer.silent_after][: answer.ends_after])
            self.wfile.flush()
            if answer.silent_after is not None:
                over.wait()

        def log_message(self, *args) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def cifar10() -> ImageData:
    """The real CIFAR-10, from the user's cache or fetched into it."""
    try:
        return load_data("cifar10")
    except (DataUnavailableError, StorageError) as error:
        pytest.skip(f"CIFAR-10 is not available: {error}")
