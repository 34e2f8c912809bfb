"""Classifiers in folders and repositories, the latter on a small Hub on localhost."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torchvision.models as tv
from torch import Tensor

from eeutils import Classifier, MultiExitNet, ThresholdPolicy, create_model, predict, with_exits
from eeutils.data import Normalization, Split
from eeutils.errors import IntegrityError

huggingface_hub = pytest.importorskip("huggingface_hub")

SIZE, CLASSES, NORMALIZATION = 32, ("cat", "dog", "bird"), Normalization((0.5,) * 3, (0.25,) * 3)
POLICY = ThresholdPolicy((0.35, float("inf")))


def of_create_model() -> MultiExitNet:
    return create_model("resnet18", width=2, exit_after=(2, 4), num_classes=3)


def of_torchvision() -> MultiExitNet:
    return with_exits(tv.shufflenet_v2_x0_5(num_classes=3), ["stage2", "stage3"], image_size=SIZE, pool="spp")


def make_classifier(net: MultiExitNet) -> Classifier:
    return Classifier(net.eval(), CLASSES, NORMALIZATION, POLICY, image_shape=(3, SIZE, SIZE))


def pictures() -> Tensor:
    return torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8)


@pytest.mark.parametrize("build", [of_create_model, of_torchvision])
def test_from_pretrained_gives_the_answers_of_what_save_pretrained_kept(tmp_path, build):
    classifier, images = make_classifier(build()), pictures()
    classifier.save_pretrained(tmp_path / "photos")
    again = Classifier.from_pretrained(tmp_path / "photos")
    assert (again.classes, again.policy, again.net.origin) == (CLASSES, POLICY, classifier.net.origin)
    assert torch.equal(again(images).logits, classifier(images).logits)


def test_save_pretrained_fills_the_card_from_the_table_of_exits(tmp_path):
    net, images = of_create_model().eval(), pictures()
    predictions = predict(net, Split(images, torch.arange(20) % 3, CLASSES, NORMALIZATION))
    make_classifier(net).save_pretrained(tmp_path / "photos", predictions=predictions)
    card = huggingface_hub.ModelCard.load(tmp_path / "photos" / "README.md")
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [["1", "0.350"], ["2", "inf"], ["3", ""]]
    assert [row[2] for row in rows[1:]] == [f"{macs / 1e6:,.1f}" for macs in predictions.costs.tolist()]
    assert [row[3] for row in rows[1:]] == [f"{100 * share:.2f}" for share in predictions.accuracy.tolist()]
    assert sum(float(row[4]) for row in rows[1:]) == pytest.approx(100)
    assert card.data.library_name == "eeutils"
    assert 'from_pretrained("photos")' in card.text


def test_from_pretrained_finds_damage(tmp_path):
    make_classifier(of_create_model()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        Classifier.from_pretrained(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[dict[str, bytes]]:
    """The files of the one repository of a Hub on localhost."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def say(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
            answer: dict[str, object] = {"url": f"{server_url}/me/photos", "name": "me/photos", "id": "me/photos"}
            if "/preupload/" in self.path:
                asked = json.loads(lines[0])["files"]
                modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]
                answer = {"files": modes}
            elif "/commit/" in self.path:
                values = [each["value"] for each in map(json.loads, lines) if each["key"] == "file"]
                files.update({each["path"]: base64.b64decode(each["content"]) for each in values})
                answer = {"commitUrl": f"{server_url}/me/photos/commit/{'0' * 40}", "commitOid": "0" * 40}
            self.say(json.dumps(answer).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            name = self.path.partition("/resolve/main/")[2] or self.path.partition(f"/resolve/{'0' * 40}/")[2]
            if self.path.startswith("/api/"):
                self.say(json.dumps({"id": "me/photos", "sha": "0" * 40, "siblings": []}).encode())
            elif name in files:
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                self.say(files[name], ETag=etag, X_Repo_Commit="0" * 40)
            else:
                self.say(b"", 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server_url = f"http://127.0.0.1:{server.server_port}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    # HF_ENDPOINT and HF_HUB_CACHE, which are read once.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server_url)
    template = server_url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield files
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_to_hub_and_from_pretrained_go_there_and_back(hub):
    classifier, images = make_classifier(of_torchvision()), pictures()
    classifier.push_to_hub("me/photos", token="hf_none")
    assert hub.keys() == {"README.md", "config.json", "model.safetensors"}
    assert b'from_pretrained("me/photos")' in hub["README.md"]
    again = Classifier.from_pretrained("me/photos", token="hf_none", precision="fp32")
    assert again.precision == "fp32"
    assert torch.equal(again(images).predicted, classifier(images).predicted)
