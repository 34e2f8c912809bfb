import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from eeutils import load_data
from eeutils.data import tinyimagenet
from eeutils.data.cache import as_names
from eeutils.data.tinyimagenet import FOLDER, TinyImageNetArchive, read_folder, read_zip
from eeutils.errors import IntegrityError

IDS = ("n01", "n02", "n03")
SMALL = TinyImageNetArchive(
    url="http://127.0.0.1:9/tiny.zip",  # the discard port, where nobody listens
    image_size=8,
    num_classes=3,
    train_per_class=5,
    num_test=7,
    validation_size=3,
)
IMAGE = "train/n02/images/n02_3.JPEG"


def jpeg(seed: int, mode: str = "RGB", size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def files() -> dict[str, bytes]:
    """A small archive in the official layout; the fourth image of each class, and one to test, are grey."""
    made = {
        "wnids.txt": b"n02\nn01\nn03\n",
        "words.txt": b"n01\tcrane\nn00\tsomething else\nn02\tcrane, lifting device\nn03\tgoldfish, Carassius auratus\n",
    }
    for number, each in enumerate(IDS):
        made[f"train/{each}/{each}_boxes.txt"] = b"ignored"
        for image in range(SMALL.train_per_class):
            made[f"train/{each}/images/{each}_{image}.JPEG"] = jpeg(10 * number + image, "L" if image == 3 else "RGB")
    for image in range(SMALL.num_test):
        made[f"val/images/val_{image}.JPEG"] = jpeg(100 + image, "L" if image == 0 else "RGB")
    lines = [f"val_{image}.JPEG\t{IDS[image % 3]}\t0\t0\t5\t6\n" for image in reversed(range(SMALL.num_test))]
    made["val/val_annotations.txt"] = "".join(lines).encode()
    made["test/images/test_0.JPEG"] = b"nobody reads it"
    return made


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path) -> Path:
    """The archive, unpacked."""
    root = tmp_path / "data" / FOLDER
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{FOLDER}/{name}", content)
    return buffer.getvalue()


def vouched(content: bytes, **changes) -> TinyImageNetArchive:
    """Return the small archive as if the official zip were `content`."""
    return replace(SMALL, md5=hashlib.md5(content).hexdigest(), size=len(content), **changes)


def decoded(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


def assert_right(raw: dict[str, torch.Tensor], files: dict[str, bytes]) -> None:
    """Every image has its pixels, its label and its place."""
    names = [f"train/{each}/images/{each}_{image}.JPEG" for each in IDS for image in range(5)]
    assert torch.equal(raw["train_images"], torch.stack([decoded(files[name]) for name in names]))
    assert raw["train_labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    tests = [f"val/images/val_{image}.JPEG" for image in reversed(range(7))]
    assert torch.equal(raw["test_images"], torch.stack([decoded(files[name]) for name in tests]))
    assert raw["test_labels"].tolist() == [image % 3 for image in reversed(range(7))]
    assert as_names(raw["class_names"]) == ("crane", "crane, lifting device", "goldfish")


def test_read_folder_returns_all_images_and_changes_nothing(folder, files, monkeypatch):
    monkeypatch.setattr(tinyimagenet, "_IMAGES_A_TASK", 2)
    assert_right(read_folder(folder, SMALL), files)
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there == files


def test_read_zip_unpacks_nothing(files, tmp_path):
    path = tmp_path / "tiny.zip"
    path.write_bytes(zipped(files | {"../../outside.txt": b"gotcha", "/outside.txt": b"gotcha"}))
    assert_right(read_zip(path, vouched(path.read_bytes())), files)
    assert list(tmp_path.iterdir()) == [path]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def change(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(old, new)) and None


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove("."), "wnids.txt"),
        (remove(IMAGE), IMAGE),
        (change("wnids.txt", b"n02\n", b"../n02\n"), "2 of 3 classes"),
        (change("val/val_annotations.txt", b"val_4.JPEG", b"../../x.JPEG"), "6 of 7 test images"),
        (write(IMAGE, jpeg(1)[:-200]), IMAGE),
        (write(IMAGE, jpeg(1, size=9)), rf"{IMAGE}.*\(9, 9\)"),
    ],
)
def test_read_folder_names_what_is_missing_or_damaged(folder, damage, named):
    damage(folder)
    with pytest.raises(IntegrityError, match=named):
        read_folder(folder, SMALL)


def test_load_tinyimagenet_caches_a_local_copy(offline, folder, files, tmp_path, monkeypatch, left_behind):
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", SMALL)
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    data = load_data("tinyimagenet")
    assert (data.name, data.image_shape) == ("tinyimagenet", (3, 8, 8))
    assert [split.labels.bincount().tolist() for split in (data.train, data.val)] == [[4, 4, 4], [1, 1, 1]]
    assert torch.equal(data.test.images[6], decoded(files["val/images/val_0.JPEG"]))
    assert left_behind() == ["tinyimagenet.safetensors"]
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    again = load_data("tinyimagenet")
    assert again.classes == data.classes == ("crane", "crane, lifting device", "goldfish")
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(again, part).images, getattr(data, part).images)
        assert torch.equal(getattr(again, part).labels, getattr(data, part).labels)


def test_load_tinyimagenet_prefers_a_whole_zip_to_half_a_folder(offline, folder, files, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    (folder / IMAGE).unlink()
    content = zipped(files)
    folder.with_suffix(".zip").write_bytes(content)
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", vouched(content))
    assert torch.equal(load_data("tinyimagenet").test.images[6], decoded(files["val/images/val_0.JPEG"]))


def test_load_tinyimagenet_falls_back_to_the_official_site(offline, site, files, monkeypatch, left_behind):
    content = zipped(files)
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", vouched(content, url=site.say("/tiny.zip", content)))
    assert load_data("tinyimagenet").classes[2] == "goldfish"
    assert left_behind() == ["tinyimagenet.safetensors"]
