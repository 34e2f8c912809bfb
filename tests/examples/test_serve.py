import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image

from eeutils import list_weights, load_classifier
from tests.toys import free_port, wait_for

pytest.importorskip("litserve", reason="litserve is not installed")

SERVE = Path(__file__).parents[2] / "examples" / "serve.py"


@pytest.fixture(scope="module")
def name() -> str:
    return next(name for name in list_weights() if name.startswith("resnet18_3exits-spp-cifar10-w16"))


@pytest.fixture(scope="module", autouse=True)
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def url(name) -> Iterator[str]:
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(SERVE.parents[1]), "no_proxy": "127.0.0.1"}
    words = [sys.executable, str(SERVE), "--weights", name, "--port", str(port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(words, env=environment, **silent) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(f"{address}/health", server)
            yield f"{address}/predict"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its workers, too


def png(pixels: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "png")
    return stream.getvalue()


def test_serve_gives_many_clients_the_classifiers_answers(url, name):
    pixels = torch.randint(0, 256, (24, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    classifier = load_classifier(name)

    def ask(image: torch.Tensor) -> dict:
        return requests.post(url, files={"request": png(image)}, timeout=60).json()

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, pixels))
    expected = classifier(pixels)
    assert [answer["class"] for answer in answers] == [classifier.classes[index] for index in expected.predicted]
    assert [answer["exit"] - 1 for answer in answers] == expected.exit_index.tolist()


def test_serve_refuses_what_is_no_image_and_goes_on(url):
    assert requests.post(url, files={"request": b"no image"}, timeout=60).status_code == 400
    assert requests.post(url, files={"request": png(torch.full((3, 32, 32), 128).byte())}, timeout=60).ok
