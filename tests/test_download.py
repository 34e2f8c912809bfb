import gzip
import hashlib
import resource
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from eeutils import download as download_module
from eeutils.download import Source, check_hash, check_no_web_page, download, first_that_delivers
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from tests.toys import run_in_child

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _soon_given_up(monkeypatch) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_S", (1.0, 0.3))
    monkeypatch.setattr(download_module, "BACKOFF_S", 0.01)


def check(path: Path) -> None:
    if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(CONTENT).digest():
        raise IntegrityError("another file")


def fetch(url: str, target: Path, size: int | None = len(CONTENT)) -> bytes:
    download(url, target, check, size=size)
    return target.read_bytes()


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_download_writes_the_checked_file_alone(site, tmp_path, size):
    assert fetch(site.say("/w", CONTENT), tmp_path / "new" / "w", size) == CONTENT
    assert files_in(tmp_path) == {"w": CONTENT}


@pytest.mark.parametrize("keep", [100, 5000])
def test_download_resumes_what_broke_off(site, tmp_path, keep):
    url = site.say("/w", CONTENT, ends_after=keep)
    site.then_say("/w", CONTENT, resumes=True)
    assert fetch(url, tmp_path / "w") == CONTENT
    assert site.ranges == [None, f"bytes={keep}-"]


@pytest.mark.parametrize("resumes", [True, False])
def test_download_resumes_in_the_next_call(site, tmp_path, resumes):
    url = site.say("/w", CONTENT, ends_after=100)
    with pytest.raises(ConnectionError):
        fetch(url, tmp_path / "w")
    assert files_in(tmp_path) == {"w": CONTENT[:100]}
    assert not (tmp_path / "w").exists()
    site.say("/w", CONTENT, resumes=resumes)
    assert fetch(url, tmp_path / "w") == CONTENT
    assert site.ranges[-1] == "bytes=100-"
    assert files_in(tmp_path) == {"w": CONTENT}


@pytest.mark.parametrize("left", [b"x" * 100, CONTENT + b"x", b"x" * len(CONTENT)])
def test_download_starts_anew_where_the_rest_does_not_fit(site, tmp_path, left):
    (tmp_path / ".w.work").mkdir()
    (tmp_path / ".w.work" / "w").write_bytes(left)
    assert fetch(site.say("/w", CONTENT, resumes=True), tmp_path / "w") == CONTENT
    assert files_in(tmp_path) == {"w": CONTENT}


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {"Retry-After": "0"}), (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})]
)
def test_download_tries_a_busy_server_again(site, tmp_path, status, headers):
    url = site.say("/w", b"busy", status=status, headers=headers)
    site.then_say("/w", CONTENT)
    assert fetch(url, tmp_path / "w") == CONTENT
    assert site.asked == ["/w", "/w"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"body": b"x", "status": 404}, "404"),
        ({"body": CONTENT[:-9]}, "10,231 bytes, expected 10,240"),
        ({"body": CONTENT + b"x"}, "10,241 bytes, expected 10,240"),
        ({"body": CONTENT, "silent_after": 0}, "[Tt]imed out"),
    ],
)
def test_download_says_what_the_server_did(site, tmp_path, answer, error):
    with pytest.raises(ConnectionError, match=error):
        fetch(site.say("/w", **answer), tmp_path / "w")
    assert not any(files_in(tmp_path).values())


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_download_stops_an_endless_answer(site, tmp_path, monkeypatch, size):
    monkeypatch.setattr(download_module, "_LARGEST", 20_000)
    url = site.say("/w", CONTENT * 100, headers={"Content-Length": "none"})
    with pytest.raises(ConnectionError, match="more than"):
        fetch(url, tmp_path / "w", size)
    assert not any(files_in(tmp_path).values())


def test_download_unpacks_nothing(site, tmp_path):
    packed = gzip.compress(bytes(10_000_000))
    url = site.say("/w", packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(IntegrityError):
        fetch(url, tmp_path / "w", size=None)
    assert files_in(tmp_path) == {}


def test_download_asks_for_room_first(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
    with pytest.raises(StorageError, match="No space left"):
        fetch(site.say("/w", CONTENT), tmp_path / "w")
    assert files_in(tmp_path) == {}


def test_download_onto_a_full_disk_is_a_storage_error(site, tmp_path):
    url = site.say("/w", CONTENT)

    def fetch_onto_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(StorageError, match=str(tmp_path / "w")):
            fetch(url, tmp_path / "w")

    assert run_in_child(fetch_onto_a_full_disk) == 0
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "beginning"),
    [
        (b"\xef\xbb\xbf\n <!DOCTYPE html><p>Quota", "<!DOCTYPE html><p>Quota"),
        (b"<\x00\x00\x00\x00\x00\x00\x00{}", None),  # as safetensors begin whose header has 60 bytes
        (b"PK\x03\x04<html>", None),
    ],
)
def test_check_no_web_page_tells_it_by_how_it_begins(tmp_path, content, beginning):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(IntegrityError, match=beginning) if beginning else nullcontext():
        check_no_web_page(tmp_path / "file")


def source(name: str, error: BaseException | None = None) -> Source[str]:
    """Make a source that delivers its name, or raises `error`."""
    return Source(name, Mock(return_value=name, side_effect=error), remedy=f"mend {name}")


def test_first_that_delivers_names_reasons_and_remedies():
    sources = [source("first", OSError("unplugged")), source("second", ValueError())]
    with pytest.raises(DataUnavailableError, match=r"(?s)first: unplugged.*mend first.*second: ValueError.*Do without"):
        first_that_delivers("a letter", sources, "Do without.")


def test_first_that_delivers_warns_of_a_slow_source_unless_it_is_the_only_one(recwarn):
    slow = replace(source("site"), slow="hours")
    first_that_delivers("a letter", [slow])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"(?s)site: hours.*copy: is not there.*mend copy"):
        first_that_delivers("a letter", [source("copy", FileNotFoundError("is not there")), slow])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("disk full")], ids=["interrupt", "full disk"])
def test_first_that_delivers_stops_at_interrupts_and_full_disks(error):
    following = source("next")
    with pytest.raises(type(error)):
        first_that_delivers("a letter", [source("one", error), following])
    following.fetch.assert_not_called()


@pytest.mark.parametrize(("content", "named"), [(b"other", "file"), (b"<html>sign in", "web page")])
def test_check_hash_refuses_another_file(tmp_path, content, named):
    path, md5 = tmp_path / "file", hashlib.md5(b"this").hexdigest()
    path.write_bytes(b"this")
    check_hash(path, "md5", md5)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=named):
        check_hash(path, "md5", md5)
