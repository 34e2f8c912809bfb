import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data, verify_content
from eeutils.download import Source, progress_bar
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError


def small_data() -> RawData:
    return {
        "images": torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8),
        "labels": torch.tensor([0, 1, 2, 3]).byte(),
    }


def altered() -> RawData:
    data = small_data()
    data["images"][0, 0, 0, 0] += 1
    return data


def content_of(data: RawData) -> dict[str, Content]:
    return {
        part: Content(tuple(tensor.shape), hashlib.sha256(tensor.numpy()).hexdigest()) for part, tensor in data.items()
    }


CONTENT = content_of(small_data())
NO_HASH = {"images": Content((4, 3, 8, 8)), "labels": Content((None,))}


def fetched(answer: RawData | BaseException, asked: list[str] | None = None, name: str = "one", content=CONTENT):
    """Ask for the data set "small", with one source that answers."""

    def fetch() -> RawData:
        if asked is not None:
            asked.append(name)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return cached_data("small", content, lambda folder: [Source(name, fetch, remedy=f"mend {name}")])


@pytest.fixture
def cache(empty_cache) -> Path:
    return empty_cache


def same(data: RawData, expected: RawData) -> bool:
    return data.keys() == expected.keys() and all(torch.equal(data[part], expected[part]) for part in expected)


def names_in(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_verify_content_accepts_the_same_bytes_in_any_memory_order():
    data = small_data()
    verify_content({**data, "images": data["images"].contiguous(memory_format=torch.channels_last)}, CONTENT)
    verify_content(altered(), NO_HASH)
    verify_content({**data, "labels": torch.zeros(9).byte()}, NO_HASH)


@pytest.mark.parametrize("content", [CONTENT, NO_HASH], ids=["hash", "no hash"])
@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"images": small_data()["images"].view(4, 8, 8, 3)},
        {"images": small_data()["images"][:3]},
        {"labels": small_data()["labels"].char()},
        {"labels": small_data()["labels"][:, None]},
    ],
)
def test_verify_content_refuses_another_form(changes, content):
    data = {part: tensor for part, tensor in {**small_data(), **changes}.items() if tensor is not None}
    with pytest.raises(IntegrityError, match=next(iter(changes))):
        verify_content(data, content)


@pytest.mark.parametrize("changes", [altered(), {"labels": torch.tensor([0, 1, 3, 2]).byte()}])
def test_verify_content_refuses_other_bytes(changes):
    with pytest.raises(IntegrityError, match="sha256"):
        verify_content({**small_data(), **changes}, CONTENT)


@pytest.mark.parametrize("content", [CONTENT, NO_HASH], ids=["hash", "no hash"])
def test_cached_data_fetches_once(cache, content):
    asked: list[str] = []
    assert same(fetched(small_data(), asked, "one", content), small_data())
    assert same(fetched(small_data(), asked, "two", content), small_data())
    assert asked == ["one"]
    assert names_in(cache) == ["small.safetensors"]


def test_cached_data_asks_the_next_source_after_a_failure(cache):
    answers = {"broken": OSError("unplugged"), "wrong": altered(), "right": small_data(), "late": OSError("not asked")}

    def fetch(name: str) -> RawData:
        if isinstance(answers[name], OSError):
            raise answers.pop(name)
        return answers.pop(name)

    sources = [Source(name, lambda name=name: fetch(name), f"mend {name}") for name in answers]
    assert same(cached_data("small", CONTENT, lambda folder: sources), small_data())
    assert answers.keys() == {"late"}


def test_cached_data_caches_only_the_expected_content(cache):
    with pytest.raises(DataUnavailableError, match="sha256"):
        fetched(altered())
    assert names_in(cache) == []
    fetched(small_data(), content={"labels": NO_HASH["labels"]})
    assert load_file(cache / "small.safetensors").keys() == {"labels"}


@given(names=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1), min_size=1))
def test_as_names_inverts_as_bytes(names):
    assert as_names(as_bytes(names)) == tuple(names)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def make_it_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("content", [CONTENT, NO_HASH], ids=["hash", "no hash"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        flip_a_bit,
        lambda path: path.write_text("<html>not found</html>"),
        lambda path: save_file({"images": small_data()["images"]}, path),
        lambda path: save_file(altered(), path),
        lambda path: save_file({**small_data(), "labels": small_data()["labels"].char()}, path),
        make_it_a_dangling_link,
    ],
)
def test_cached_data_replaces_a_damaged_cache_file(cache, damage, content):
    fetched(small_data(), content=content)
    damage(cache / "small.safetensors")
    with pytest.raises(DataUnavailableError, match="unplugged"):
        fetched(OSError("unplugged"), content=content)
    asked: list[str] = []
    assert same(fetched(small_data(), asked, content=content), small_data())
    assert asked == ["one"]
    assert same(load_file(cache / "small.safetensors"), small_data())


def test_cached_data_finds_an_unwritable_cache_before_it_fetches(cache):
    cache.write_text("a file in the folder's place")
    asked: list[str] = []
    with pytest.raises(StorageError, match=str(cache)):
        fetched(small_data(), asked)
    assert asked == []


@pytest.fixture
def small_disk(cache):
    """Function that remounts the disk of the cache folder, of 64 KB, with other options."""
    cache.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", cache], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", cache], check=True)
    subprocess.run(["umount", "--lazy", cache], check=True)


def test_cached_data_finds_a_full_disk_before_it_fetches(cache, small_disk):
    asked: list[str] = []
    large = {"images": torch.zeros(2**17, dtype=torch.uint8)}
    with pytest.raises(StorageError, match="No space left"):
        fetched(large, asked, content=content_of(large))
    assert asked == []
    assert names_in(cache) == []


def test_cached_data_reads_from_a_read_only_disk(cache, small_disk):
    fetched(small_data())
    small_disk("ro")
    assert same(fetched(OSError("unplugged")), small_data())


# The source notes on disk that it was asked, leaves a temporary file, and delivers after both processes have asked.
ASK = """
import sys, time
from pathlib import Path
from test_cache import CONTENT, Source, cached_data, same, small_data

folder, me = Path(sys.argv[1]), sys.argv[2]

def sources(temporary):
    def fetch():
        with (folder / "asked").open("a") as file:
            file.write(me)
        (temporary / "half").write_bytes(b"x" * 1000)
        while not all((folder / name).exists() for name in "ab"):
            time.sleep(0.01)
        return small_data()
    return [Source("slow", fetch, "")]

(folder / me).touch()
assert same(cached_data("small", CONTENT, sources), small_data())
"""


def started(tmp_path: Path, name: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", ASK, tmp_path, name], env=environment)


def test_cached_data_lets_one_of_two_processes_fetch(cache, tmp_path):
    processes = [started(tmp_path, name) for name in "ab"]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "asked").read_text() in ("a", "b")


def test_cached_data_sweeps_what_a_killed_fetch_left(cache, tmp_path):
    process = started(tmp_path, "a")
    while not list(cache.rglob("half")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait(120)
    assert same(fetched(small_data()), small_data())
    assert names_in(cache) == ["small.safetensors"]


def test_progress_bar_is_silent_in_a_log(capfd):
    with progress_bar("the download", 100) as bar:
        bar.update(50)
    assert capfd.readouterr() == ("", "")
