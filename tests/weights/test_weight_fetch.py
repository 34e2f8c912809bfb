import hashlib
import multiprocessing
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import gdown
import pytest
import requests

from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from eeutils.weights import StoredFile, fetch
from eeutils.weights.fetch import drive_page, local_file

CONTENT = bytes(range(256)) * 40
HTML = b"\n  <!DOCTYPE html><html><body>Quota exceeded</body></html>"


@pytest.fixture
def soon_given_up(monkeypatch) -> None:
    """For the tests whose server stays silent; a busy machine may keep the others waiting that long."""
    monkeypatch.setattr(fetch, "TIMEOUT_S", (1.0, 0.3))


def stored(*sources: str, content: bytes = CONTENT) -> StoredFile:
    return StoredFile("net/w.bin", hashlib.sha256(content).hexdigest(), len(content), sources)


@pytest.fixture
def repository(tmp_path) -> Path:
    file = tmp_path / "repository" / "net" / "w.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return tmp_path / "repository"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def test_the_repositorys_copy_needs_no_network_and_no_cache(repository, cache):
    path = local_file(stored("repository", "http://127.0.0.1:1/x"), repository)
    assert path == repository / "net/w.bin"
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"x", HTML])
def test_a_damaged_repository_file_names_the_remedy(repository, damage):
    (repository / "net/w.bin").write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"git checkout -- .*net/w\.bin"):
        local_file(stored("repository", "http://127.0.0.1:1/x"), repository)


def test_fetched_once_then_offline(site, cache):
    site.say("/w", CONTENT)
    file = stored("repository", f"{site.url}/w")
    path = local_file(file, None)
    assert path == cache / "net/w.bin"
    assert path.read_bytes() == CONTENT
    site.answers.clear()
    assert local_file(file, None) == path
    assert site.asked == ["/w"]


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", HTML, b""])
def test_a_damaged_cache_copy_is_fetched_again(site, cache, damage):
    site.say("/w", CONTENT)
    cached = cache / "net/w.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(damage)
    assert local_file(stored(f"{site.url}/w"), None).read_bytes() == CONTENT


def test_the_next_source_has_its_turn(site, cache):
    site.say("/good", CONTENT)
    file = stored("repository", f"{site.url}/missing", f"{site.url}/good")
    assert local_file(file, None).read_bytes() == CONTENT
    assert site.asked == ["/missing", "/good"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"body": HTML}, "answered a web page, not weights"),
        ({"body": b"x", "status": 404}, "404"),
        ({"body": b"x", "status": 500}, "500"),
        ({"body": CONTENT[:-1] + b"x"}, "not the file that was published"),
        ({"body": CONTENT[:-9]}, "not the file that was published"),
        ({"body": CONTENT, "ends_after": 100}, "IncompleteRead|incomplete|broken"),
        ({"body": CONTENT, "silent_after": 100}, "[Tt]imed out"),
    ],
    ids=["web page", "404", "500", "bit rot", "short", "hangs up", "hangs"],
)
@pytest.mark.usefixtures("soon_given_up")
def test_what_a_bad_source_did_is_said_and_nothing_is_left(site, cache, answer, reason):
    site.say("/w", **answer)
    with pytest.raises(DataUnavailableError, match=reason) as caught:
        local_file(stored(f"{site.url}/w"), None)
    assert f"{site.url}/w" in str(caught.value)
    assert str(cache / "net/w.bin") in str(caught.value)
    assert left_in(cache) == set()


@pytest.mark.usefixtures("soon_given_up")
def test_a_host_that_is_not_there(cache):
    with pytest.raises(DataUnavailableError, match="refused"):
        local_file(stored("http://127.0.0.1:1/w"), None)


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_source(site, monkeypatch, tmp_path):
    site.say("/w", CONTENT)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="EEUTILS_CACHE"):
        local_file(stored(f"{site.url}/w"), None)


def in_children(count: int, work: Callable[[], object]) -> list[object]:
    """What `work` returns in each of `count` processes that run at the same time; forked, because imports take long."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=lambda: answers.put(work())) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * count
    return [answers.get() for _ in children]


def test_a_full_disk_is_no_fault_of_the_source(site, cache):
    content = bytes(200_000)
    file = stored(site.say("/w", content), content=content)

    def fetch_onto_a_full_disk() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(StorageError) as caught:
            local_file(file, None)
        return str(caught.value)

    (message,) = in_children(1, fetch_onto_a_full_disk)
    assert str(cache / "net/w.bin") in message
    assert left_in(cache) == set()


def test_two_processes_fetch_once(site, cache):
    file = stored(site.say("/w", CONTENT, delay_s=0.5))
    assert in_children(2, lambda: local_file(file, None).read_bytes()) == [CONTENT] * 2
    assert site.asked == ["/w"]


# Google Drive, by gdown.


def drive_file(sha256: str | None = None) -> StoredFile:
    return StoredFile("net/module.pt", sha256, None, ("drive:some_id",))


def drive_answers(monkeypatch, content: bytes) -> list[dict]:
    calls = []

    def download(*, output: str, **kwargs) -> str:
        calls.append(kwargs)
        Path(output).write_bytes(content)
        return output

    monkeypatch.setattr(gdown, "download", download)
    return calls


def test_drive_delivers(monkeypatch, cache):
    calls = drive_answers(monkeypatch, CONTENT)
    for _ in range(2):
        assert local_file(drive_file(), None).read_bytes() == CONTENT
    assert [call["id"] for call in calls] == ["some_id"]
    assert calls[0]["timeout"] is not None
    assert left_in(cache) == {"module.pt"}


def test_drive_answers_a_web_page(monkeypatch, cache):
    drive_answers(monkeypatch, HTML)
    with pytest.raises(DataUnavailableError, match="answered a web page, not weights") as caught:
        local_file(drive_file(), None)
    assert drive_page("some_id") in str(caught.value)
    assert left_in(cache) == set()


def test_drive_delivers_something_else(monkeypatch, cache):
    drive_answers(monkeypatch, CONTENT)
    with pytest.raises(DataUnavailableError, match="sha256"):
        local_file(drive_file(sha256="00" * 32), None)
    assert left_in(cache) == set()


@pytest.mark.usefixtures("soon_given_up")
def test_an_unreachable_drive_says_how_to_fetch_by_hand(monkeypatch, cache):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DataUnavailableError) as caught:
        local_file(drive_file(), None)
    assert "https://drive.google.com/file/d/some_id/view" in str(caught.value)
    assert f"save it as {cache / 'net/module.pt'}" in str(caught.value)
    assert left_in(cache) == set()


def test_a_file_fetched_by_hand_is_used(monkeypatch, cache):
    monkeypatch.setattr(gdown, "download", lambda **_: pytest.fail("the file is there"))
    (cache / "net").mkdir(parents=True)
    (cache / "net/module.pt").write_bytes(CONTENT)
    assert local_file(drive_file(), None).read_bytes() == CONTENT


def test_gdowns_interface_is_the_one_that_is_called(site, tmp_path):
    # The real function, with a URL in place of the id: the other arguments have to be its own.
    site.say("/w", CONTENT)
    output = tmp_path / "w"
    gdown.download(url=f"{site.url}/w", output=str(output), timeout=fetch.TIMEOUT_S, use_cookies=False, retries=1)
    assert output.read_bytes() == CONTENT
    assert issubclass(requests.RequestException, OSError)  # why fetch tells it from trouble with the disk
