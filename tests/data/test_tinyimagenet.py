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
from safetensors.torch import load_file

from eeutils.data import load_data, tinyimagenet
from eeutils.data.cache import as_names
from eeutils.data.tinyimagenet import FOLDER, TinyImageNetArchive, fetch_official_site, read_folder, read_zip
from eeutils.errors import DataUnavailableError, IntegrityError

IDS = ("n01", "n02", "n03")
SMALL = TinyImageNetArchive(
    url="http://127.0.0.1:9/tiny.zip",  # the discard port, where nobody listens
    image_size=8,
    num_classes=3,
    train_per_class=5,
    num_test=7,
    validation_size=3,
)


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
        archive.mkdir(FOLDER)
        for name, content in files.items():
            archive.writestr(f"{FOLDER}/{name}", content)
    return buffer.getvalue()


def vouched(content: bytes, **changes) -> TinyImageNetArchive:
    """The small archive if the official zip were `content`."""
    return replace(SMALL, md5=hashlib.md5(content).hexdigest(), archive_size=len(content), **changes)


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


@pytest.mark.parametrize("images_a_task", [1, 2, 64])
def test_the_folder_is_read_and_left_as_it_is(folder, files, monkeypatch, images_a_task):
    monkeypatch.setattr(tinyimagenet, "_IMAGES_A_TASK", images_a_task)
    assert_right(read_folder(folder, SMALL), files)
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there == files


def test_the_zip_is_read_without_being_unpacked(files, tmp_path):
    path = tmp_path / "tiny.zip"
    path.write_bytes(zipped(files))
    assert_right(read_zip(path, vouched(path.read_bytes())), files)
    assert list(tmp_path.iterdir()) == [path]


def test_grey_images_become_rgb(folder):
    grey = read_folder(folder, SMALL)["train_images"][3]
    assert torch.equal(grey, grey[:1].expand(3, -1, -1))


def remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def change(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(old, new)) and None


IMAGE = "train/n02/images/n02_3.JPEG"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(IMAGE), r"incomplete: it lacks 1 images \(train/n02/images/n02_3.JPEG\)"),
        (remove("val/images/val_4.JPEG"), r"lacks 1 images \(val/images/val_4.JPEG\)"),
        (remove("val/images"), r"lacks 7 images \(val/images/val_6.JPEG, .* and 2 more\)"),
        (remove("train/n02"), r"lacks 1 class folders \(train/n02\)$"),
        (
            remove("train/n01", IMAGE),
            r"lacks 1 class folders \(train/n01\) and 1 images \(train/n02/images/n02_3.JPEG\)",
        ),
        (remove("train"), r"lacks 3 class folders \(train/n01, train/n02, train/n03\)$"),
        (remove("val/val_annotations.txt"), "has no val/val_annotations.txt"),
        (remove("wnids.txt"), "has no wnids.txt"),
        (remove("words.txt"), "has no words.txt"),
        (change("wnids.txt", b"n02\n", b""), "lists 2 classes, expected 3"),
        (change("words.txt", b"n03\t", b"n04\t"), "has no name for n03"),
        (write("words.txt", b"\xff\xfe\x00"), "words.txt in .* is no text"),
        (change("val/val_annotations.txt", b"val_4.JPEG\tn02", b"val_4.JPEG\tn99"), "no known class for val_4.JPEG"),
        (change("val/val_annotations.txt", b"val_4.JPEG\t", b"val_4.JPEG "), "no known class for val_4.JPEG n02"),
        (change("val/val_annotations.txt", b"val_4.JPEG", b"val_5.JPEG"), "lists 6 images, expected 7"),
        (change("val/val_annotations.txt", b"val_4.JPEG", b"val_44.JPEG"), r"lacks 1 images \(val/images/val_44.JPEG"),
        (
            change("val/val_annotations.txt", b"val_4.JPEG", b"../../x.JPEG"),
            r"lacks 1 images \(val/images/../../x.JPEG",
        ),
        (write(IMAGE, b"no image"), f"{IMAGE} in .* is not a readable image"),
        (write(IMAGE, jpeg(1)[:-200]), f"{IMAGE} in .* is not a readable image"),
        (write(IMAGE, b""), f"{IMAGE} in .* is not a readable image"),
        (write(IMAGE, jpeg(1, size=9)), f"{IMAGE} in .* is 9 x 9, expected 8 x 8"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_and_the_fault_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(IntegrityError, match=message):
        read_folder(folder, SMALL)


def test_a_missing_folder_and_a_missing_zip_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=FOLDER):
        read_folder(tmp_path / FOLDER, SMALL)
    with pytest.raises(FileNotFoundError, match=r"tiny\.zip"):
        read_zip(tmp_path / "tiny.zip", SMALL)


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", f"{FOLDER}/../../outside.txt", "..\\outside.txt"])
def test_a_zip_that_leads_out_of_its_folder_is_refused_and_nothing_is_written(files, tmp_path, empty_temp, name):
    buffer = io.BytesIO(zipped(files))
    with ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"gotcha")
    path = tmp_path / "place" / "tiny.zip"
    path.parent.mkdir()
    path.write_bytes(buffer.getvalue())
    with pytest.raises(IntegrityError, match=r"lead out of it: .*outside\.txt"):
        read_zip(path, vouched(buffer.getvalue()))
    assert not list(tmp_path.rglob("outside*"))
    assert not Path("/outside.txt").exists()


def test_a_file_with_the_right_hash_that_is_no_zip_is_refused(tmp_path):
    path = tmp_path / "tiny.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(IntegrityError, match="not a readable zip"):
        read_zip(path, vouched(b"not a zip"))


# The official site, on localhost.


@pytest.fixture
def official(site, files, empty_temp) -> TinyImageNetArchive:
    content = zipped(files)
    site.say("/tiny.zip", content)
    return vouched(content, url=f"{site.url}/tiny.zip")


def test_the_official_archive_is_fetched_and_read_and_nothing_is_left(official, files, capfd):
    assert_right(fetch_official_site(official, timeout_s=30), files)
    assert capfd.readouterr() == ("", "")


def test_another_archive_is_refused(official):
    with pytest.raises(IntegrityError, match=f"the archive has md5 {official.md5}, expected 0000$"):
        fetch_official_site(replace(official, md5="0000"), timeout_s=30)


def test_a_page_in_the_archives_place_is_refused_as_such(official, site):
    site.say("/tiny.zip", b"\n<!doctype html><p>We have moved", kind="text/html")
    with pytest.raises(IntegrityError, match="it is a web page"):
        fetch_official_site(official, timeout_s=30)


def test_a_truncated_download_is_an_error(official, site):
    whole = site.answers["/tiny.zip"].body
    site.say("/tiny.zip", whole, ends_after=len(whole) // 2)
    with pytest.raises((OSError, IntegrityError), match=r"\w"):
        fetch_official_site(official, timeout_s=30)


@pytest.mark.parametrize("silent_after", [0, 1000])
def test_a_site_that_falls_silent_is_given_up(official, site, silent_after):
    site.say("/tiny.zip", site.answers["/tiny.zip"].body, silent_after=silent_after)
    with pytest.raises(OSError, match="timed out"):
        fetch_official_site(official, timeout_s=0.5)


def test_an_answer_that_says_error_is_one(official, site):
    site.say("/tiny.zip", b"busy", kind="text/plain", status=503)
    with pytest.raises(OSError, match="503"):
        fetch_official_site(official, timeout_s=30)


# The whole way: sources, cache, splits.


@pytest.fixture
def alone(tmp_path, monkeypatch, empty_temp, empty_cache) -> Path:
    """No data and no network; returns the cache folder."""
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", SMALL)
    return empty_cache


def test_a_local_copy_is_loaded_split_and_decoded_once(alone, folder, files, tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    data = load_data("tinyimagenet")
    assert (data.name, data.image_shape) == ("tinyimagenet", (3, 8, 8))
    assert [split.labels.bincount().tolist() for split in (data.train, data.val)] == [[4, 4, 4], [1, 1, 1]]
    assert torch.equal(data.test.images[6], decoded(files["val/images/val_0.JPEG"]))
    assert [path.name for path in alone.iterdir() if path.suffix != ".lock"] == ["tinyimagenet.safetensors"]
    assert_right(load_file(alone / "tinyimagenet.safetensors"), files)

    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    again = load_data("tinyimagenet")
    assert again.classes == data.classes == ("crane", "crane, lifting device", "goldfish")
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(again, part).images, getattr(data, part).images)
        assert torch.equal(getattr(again, part).labels, getattr(data, part).labels)


def test_a_cache_file_in_which_a_bit_has_flipped_is_not_used(alone, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    expected = load_data("tinyimagenet").test.images
    cached = alone / "tinyimagenet.safetensors"
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataUnavailableError):
        load_data("tinyimagenet")
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    assert torch.equal(load_data("tinyimagenet").test.images, expected)


@pytest.mark.parametrize("place", ["EEUTILS_DATA", "EEUTILS_CACHE"])
def test_a_zip_stands_in_for_a_folder_that_is_half_unpacked(alone, folder, files, monkeypatch, place):
    monkeypatch.setenv(place, str(folder.parent))
    (folder / IMAGE).unlink()
    content = zipped(files)
    folder.with_suffix(".zip").write_bytes(content)
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", vouched(content))
    assert torch.equal(load_data("tinyimagenet").test.images[6], decoded(files["val/images/val_0.JPEG"]))


def test_the_official_site_is_used_if_nothing_else_delivers(alone, official, monkeypatch):
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", official)
    assert load_data("tinyimagenet").classes[2] == "goldfish"


def test_a_failure_names_every_source_why_and_what_to_do_and_leaves_nothing(alone, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(folder.parent))
    (folder / IMAGE).unlink()
    folder.with_suffix(".zip").write_bytes(b"<html>")
    with pytest.raises(DataUnavailableError) as caught:
        load_data("tinyimagenet")
    message = str(caught.value)
    parts = [
        f"folder {FOLDER} in {folder.parent}: {folder} is incomplete: it lacks 1 images ({IMAGE})",
        f"unpack {FOLDER}.zip",
        f"{FOLDER}.zip in {folder.parent}: the archive has md5",
        "it is a web page",
        f"download {SMALL.url} by hand",
        f"folder {FOLDER} in {alone}: there is no folder",
        f"{FOLDER}.zip in {alone}: there is no file",
        "official site: ",
        "load_data('digits')",
    ]
    places = [message.index(part) for part in parts]
    assert places == sorted(places)
    assert [path for path in alone.iterdir() if path.suffix != ".lock"] == []


def test_the_official_archive_is_described_as_it_is():
    """Sizes that every description of the data set gives."""
    content = TinyImageNetArchive().content
    assert content["train_images"].shape == (100_000, 3, 64, 64)
    assert content["test_images"].shape == (10_000, 3, 64, 64)
