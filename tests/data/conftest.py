"""A site on localhost that can misbehave, and CIFAR-10 in small."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from eeutils.data.sources import RawData


@dataclass(frozen=True)
class Answer:
    """What the site says; `silent_after` bytes it falls silent, `ends_after` bytes it hangs up."""

    body: bytes
    kind: str = "application/octet-stream"
    status: int = 200
    silent_after: int | None = None
    ends_after: int | None = None


@dataclass
class Site:
    """Answers by path."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)

    def say(self, path: str, body: bytes, **kwargs) -> None:
        """Answer `path` with `body`; `kwargs` are those of `Answer`."""
        self.answers[path] = Answer(body, **kwargs)


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    site, over = Site(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = site.answers.get(self.path, Answer(b"no such page", "text/plain", 404))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.silent_after][: answer.ends_after])
            self.wfile.flush()
            if answer.silent_after is not None:
                over.wait()

        def log_message(self, *args) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def small_raw() -> RawData:
    """CIFAR-10's four tensors with 200 training images, in five files' worth, and 20 to test."""
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": torch.randint(0, 256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "train_labels": torch.arange(200, dtype=torch.uint8) % 10,
        "test_images": torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "test_labels": torch.arange(20, dtype=torch.uint8) % 10,
    }


@pytest.fixture
def empty_temp(tmp_path, monkeypatch) -> Iterator[None]:
    """Temporary files go to a folder of the test's own, and none may be left at its end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
