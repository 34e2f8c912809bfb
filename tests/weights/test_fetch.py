import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gdown
import pytest

from eeutils import download
from eeutils.errors import DataUnavailableError, IntegrityError
from eeutils.weights import StoredFile, fetch
from eeutils.weights.fetch import local_file

CONTENT = bytes(range(256)) * 40
HTML = b"\n  <!DOCTYPE html><html><body>Quota exceeded</body></html>"


def stored(*sources: str, content: bytes = CONTENT) -> StoredFile:
    return StoredFile("net/w.bin", hashlib.sha256(content).hexdigest(), len(content), sources)


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1] + b"x"])
def test_local_file_damaged_in_the_repository_names_the_remedy(tmp_path, damage):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "w.bin").write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"git checkout -- .*net/w\.bin"):
        local_file(stored("repository", "http://127.0.0.1:1/x"), tmp_path)


def test_local_file_is_fetched_once_and_again_if_it_is_damaged(site, cache):
    file, path = stored("repository", site.say("/w", CONTENT)), cache / "net/w.bin"
    for damage in (None, CONTENT[:-1] + b"x", b""):
        if damage is not None:
            path.write_bytes(damage)
        assert local_file(file, None) == local_file(file, None) == path
        assert path.read_bytes() == CONTENT
    assert site.asked == ["/w"] * 3


@pytest.mark.parametrize(
    ("body", "size", "reason"),
    [(HTML, None, "answered a web page"), (CONTENT[:-1] + b"x", len(CONTENT), "sha256")],
    ids=["web page", "bit rot"],
)
def test_local_file_says_what_a_bad_source_did_and_leaves_nothing(site, cache, body, size, reason):
    url = site.say("/w", body)
    with pytest.raises(DataUnavailableError, match=reason) as caught:
        local_file(replace(stored(url), size=size), None)
    assert url in str(caught.value)
    assert str(cache / "net/w.bin") in str(caught.value)
    assert left_in(cache) == set()


@pytest.mark.timeout(60)
def test_local_file_is_fetched_once_for_two_who_ask(site, cache, capfd):
    file = stored(site.say("/w", CONTENT, delay_s=0.5))
    with ThreadPoolExecutor(2) as askers:
        paths = list(askers.map(lambda _: local_file(file, None), range(2)))
    assert paths == [cache / "net/w.bin"] * 2
    assert site.asked == ["/w"]
    assert str(cache / "net/w.bin") in capfd.readouterr().err


def test_local_file_offline_asks_nobody(site, cache, monkeypatch):
    monkeypatch.setenv("EEUTILS_OFFLINE", "1")
    file = stored(site.say("/w", CONTENT), "drive:some_id")
    with pytest.raises(DataUnavailableError, match="EEUTILS_OFFLINE"):
        local_file(file, None)
    assert site.asked == []
    (cache / "net").mkdir(parents=True, exist_ok=True)
    (cache / "net/w.bin").write_bytes(CONTENT)
    assert local_file(file, None) == cache / "net/w.bin"


@pytest.mark.parametrize("released", [True, False])
def test_local_file_of_an_older_version_stays_that_of_its_tag(site, cache, monkeypatch, released):
    if released:
        site.say("/v1/net/w.bin", CONTENT)
        site.say("/HEAD/net/w.bin", b"published since")
    else:
        site.say("/HEAD/net/w.bin", CONTENT)
    addresses = [f"{site.url}/{version}/net/w.bin" for version in ("v1", "HEAD")]
    monkeypatch.setattr(fetch, "release_addresses", lambda path: addresses)
    assert local_file(stored("repository"), None).read_bytes() == CONTENT
    assert site.asked == ["/v1/net/w.bin", "/HEAD/net/w.bin"][: 2 - released]


def readable(path: Path) -> None:
    if not path.read_bytes().startswith(bytes(range(256))):
        raise IntegrityError(f"{path} cannot be read")


def unknown(*sources: str) -> StoredFile:
    return StoredFile("net/w.bin", None, None, sources)


@pytest.mark.parametrize("body", [b"", b"quota exceeded", HTML])
def test_local_file_caches_nothing_that_cannot_be_read(site, cache, body):
    with pytest.raises(DataUnavailableError):
        local_file(unknown(site.say("/w", body)), None, readable)
    assert left_in(cache) == set()


def test_local_file_notes_an_unknown_sha256_and_accepts_no_other(site, cache):
    file = unknown(site.say("/w", CONTENT))
    path = local_file(file, None, readable)
    assert left_in(cache) == {"w.bin", "w.bin.sha256"}
    path.write_bytes(CONTENT[:-1])  # readable, but damaged
    assert local_file(file, None, readable).read_bytes() == CONTENT
    site.say("/w", CONTENT + b"new")
    assert local_file(file, None, readable).read_bytes() == CONTENT
    path.unlink()
    with pytest.raises(DataUnavailableError, match=r"delete .*w\.bin\.sha256"):
        local_file(file, None, readable)
    (cache / "net/w.bin.sha256").unlink()
    assert local_file(file, None, readable).read_bytes() == CONTENT + b"new"


DRIVE_FILE = StoredFile("net/module.pt", None, None, ("drive:some_id",))


def test_local_file_comes_from_drive(monkeypatch, cache):
    calls = []

    def download(*, output: str, **kwargs) -> str:
        calls.append(kwargs)
        Path(output).write_bytes(CONTENT)
        return output

    monkeypatch.setattr(gdown, "download", download)
    for _ in range(2):
        assert local_file(DRIVE_FILE, None).read_bytes() == CONTENT
    assert [call["id"] for call in calls] == ["some_id"]
    assert calls[0]["timeout"] is not None
    assert left_in(cache) == {"module.pt"}


def test_local_file_says_how_to_fetch_from_drive_by_hand(monkeypatch, cache, no_network):
    monkeypatch.setattr(download, "TIMEOUT_S", (1.0, 0.3))
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    with pytest.raises(DataUnavailableError) as caught:
        local_file(DRIVE_FILE, None)
    assert "https://drive.google.com/file/d/some_id/view" in str(caught.value)
    assert f"save it as {cache / 'net/module.pt'}" in str(caught.value)
    assert left_in(cache) == set()


def test_local_file_stops_drive_when_endless(site, cache, monkeypatch):
    url, real = site.say("/w", CONTENT * 100), gdown.download
    monkeypatch.setattr(gdown, "download", lambda *, id, **kwargs: real(url=url, **kwargs))
    with pytest.raises(DataUnavailableError, match="more than"):
        local_file(replace(DRIVE_FILE, size=100), None)
    assert left_in(cache) == set()
