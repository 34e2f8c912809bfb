import contextlib
import hashlib
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eeutils.data.cache import (
    Content,
    RawData,
    as_bytes,
    as_names,
    cached_data,
    progress_bar,
    verify_content,
)
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from eeutils.sources import Source


def small_data() -> RawData:
    return {
        "images": torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8),
        "labels": torch.tensor([0, 1, 2, 3]).byte(),
    }


def content_of(data: RawData) -> dict[str, Content]:
    return {
        part: Content(tuple(tensor.shape), hashlib.sha256(tensor.numpy()).hexdigest()) for part, tensor in data.items()
    }


CONTENT = content_of(small_data())


def altered() -> RawData:
    data = small_data()
    data["images"][0, 0, 0, 0] += 1
    return data


def source(name: str, answer: RawData | BaseException, asked: list[str] | None = None) -> Source:
    def fetch() -> RawData:
        if asked is not None:
            asked.append(name)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return Source(name, fetch, remedy=f"mend {name}")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(data: RawData, expected: RawData) -> bool:
    return data.keys() == expected.keys() and all(torch.equal(data[part], expected[part]) for part in expected)


def test_verify_accepts_the_same_bytes_in_any_memory_order():
    data = small_data()
    verify_content({**data, "images": data["images"].contiguous(memory_format=torch.channels_last)}, CONTENT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"images": small_data()["images"]}, "labels is missing"),
        (altered(), "images has sha256 .* expected"),
        ({**small_data(), "labels": torch.tensor([0, 1, 3, 2]).byte()}, "labels has sha256"),
        ({**small_data(), "images": small_data()["images"].view(4, 8, 8, 3)}, r"images is .* \(4, 8, 8, 3\), expected"),
        ({**small_data(), "labels": small_data()["labels"].char()}, "labels is torch.int8"),
        ({**small_data(), "images": small_data()["images"][:3]}, r"\(3, 3, 8, 8\), expected"),
    ],
)
def test_verify_refuses_anything_else(data, message):
    with pytest.raises(IntegrityError, match=message):
        verify_content(data, CONTENT)


def test_the_first_source_that_delivers_wins_and_later_ones_are_not_asked(cache):
    asked: list[str] = []
    sources = [
        source("broken", OSError("unplugged"), asked),
        source("wrong", altered(), asked),
        source("right", small_data(), asked),
        source("late", small_data(), asked),
    ]
    assert same(cached_data("small", CONTENT, sources), small_data())
    assert asked == ["broken", "wrong", "right"]


def test_a_failure_names_every_source_in_order_with_reason_and_remedy(cache):
    sources = [source("first", OSError("unplugged")), source("second", altered()), source("third", ValueError())]
    with pytest.raises(DataUnavailableError, match="no source could deliver small") as caught:
        cached_data("small", CONTENT, sources)
    first, second, third, last = (
        str(caught.value).index(part)
        for part in ("first: unplugged\n    -> mend first", "second: images has sha256", "third: ValueError", "digits")
    )
    assert first < second < third < last
    assert "-> mend second" in str(caught.value)
    assert "-> mend third" in str(caught.value)


def test_the_cache_is_filled_once_and_then_used(cache):
    asked: list[str] = []
    assert same(cached_data("small", CONTENT, [source("one", small_data(), asked)]), small_data())
    assert same(cached_data("small", CONTENT, [source("two", small_data(), asked)]), small_data())
    assert asked == ["one"]
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == ["small.safetensors"]


# Of a data set whose content nobody has published a hash of, the cache file itself says what it should hold.


NO_HASH = {"images": Content((4, 3, 8, 8), None), "labels": Content((None,), None)}


def test_without_a_hash_the_shape_is_checked():
    verify_content(altered(), NO_HASH)
    verify_content({**small_data(), "labels": torch.zeros(9).byte()}, NO_HASH)
    with pytest.raises(IntegrityError, match=r"images is .* \(3, 3, 8, 8\), expected"):
        verify_content({**small_data(), "images": small_data()["images"][:3]}, NO_HASH)
    with pytest.raises(IntegrityError, match=r"labels is .* \(4, 1\), expected"):
        verify_content({**small_data(), "labels": small_data()["labels"][:, None]}, NO_HASH)


def test_without_a_hash_the_cache_is_used_as_long_as_it_is_what_was_delivered(cache):
    asked: list[str] = []
    for name in ("one", "two"):
        assert same(cached_data("small", NO_HASH, [source(name, small_data(), asked)]), small_data())
    assert asked == ["one"]
    flip_a_bit(cache / "small.safetensors")
    assert same(cached_data("small", NO_HASH, [source("three", small_data(), asked)]), small_data())
    save_file(altered(), cache / "small.safetensors")  # readable, but it does not say what it should be
    assert same(cached_data("small", NO_HASH, [source("four", small_data(), asked)]), small_data())
    assert asked == ["one", "three", "four"]


def test_only_what_is_asked_for_is_cached(cache):
    cached_data("small", {"labels": NO_HASH["labels"]}, [source("one", small_data())])
    assert load_file(cache / "small.safetensors").keys() == {"labels"}


@given(names=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1), min_size=1))
def test_names_survive_as_bytes(names):
    assert as_names(as_bytes(names)) == tuple(names)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def answer_html(path: Path) -> None:
    path.write_text("<html>not found</html>")


def drop_the_labels(path: Path) -> None:
    save_file({"images": small_data()["images"]}, path)


def other_shape(path: Path) -> None:
    save_file({**small_data(), "images": small_data()["images"].view(4, 8, 8, 3)}, path)


def other_dtype(path: Path) -> None:
    save_file({**small_data(), "labels": small_data()["labels"].char()}, path)


def make_it_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip_a_bit, answer_html, drop_the_labels, other_shape, other_dtype, make_it_a_dangling_link],
)
def test_a_damaged_cache_file_is_fetched_anew(cache, damage):
    cached_data("small", CONTENT, [source("one", small_data())])
    damage(cache / "small.safetensors")
    asked: list[str] = []
    assert same(cached_data("small", CONTENT, [source("two", small_data(), asked)]), small_data())
    assert asked == ["two"]
    assert same(load_file(cache / "small.safetensors"), small_data())


def test_a_damaged_cache_file_is_not_used_if_nothing_else_can_be_had(cache):
    cached_data("small", CONTENT, [source("one", small_data())])
    flip_a_bit(cache / "small.safetensors")
    with pytest.raises(DataUnavailableError, match="unplugged"):
        cached_data("small", CONTENT, [source("two", OSError("unplugged"))])


def test_wrong_data_is_never_cached(cache):
    with pytest.raises(DataUnavailableError, match="sha256"):
        cached_data("small", CONTENT, [source("wrong", altered())])
    assert not (cache / "small.safetensors").exists()


def test_an_unwritable_cache_is_found_out_before_anything_is_fetched(cache):
    cache.write_text("a file in the folder's place")
    asked: list[str] = []
    with pytest.raises(StorageError, match="EEUTILS_CACHE") as caught:
        cached_data("small", CONTENT, [source("one", small_data(), asked)])
    assert str(cache) in str(caught.value)
    assert asked == []


def test_a_full_disk_leaves_nothing_half_written(cache):
    cache.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", cache], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        large = {"images": torch.zeros(2**17, dtype=torch.uint8)}
        with pytest.raises(StorageError, match="No space left") as caught:
            cached_data("large", content_of(large), [source("one", large)])
        assert "large.safetensors" in str(caught.value)
        assert "EEUTILS_CACHE" in str(caught.value)
        assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    finally:
        subprocess.run(["umount", "--lazy", cache], check=True)


def test_a_cache_on_a_read_only_disk_can_be_read(cache):
    cache.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", cache], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        cached_data("small", CONTENT, [source("one", small_data())])
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        assert same(cached_data("small", CONTENT, [source("two", OSError("unplugged"))]), small_data())
    finally:
        subprocess.run(["umount", "--lazy", cache], check=True)


# The source notes on disk that it was asked, and delivers only after both processes have asked for the data.
ASK = """
import sys, time
from pathlib import Path
from test_sources import CONTENT, Source, cached_data, same, small_data

folder, me = Path(sys.argv[1]), sys.argv[2]

def fetch():
    with (folder / "asked").open("a") as file:
        file.write(me)
    while not all((folder / name).exists() for name in "ab"):
        time.sleep(0.01)
    time.sleep(0.5)
    return small_data()

(folder / me).touch()
assert same(cached_data("small", CONTENT, [Source("slow", fetch, "")]), small_data())
"""


def test_of_two_processes_one_fetches_and_the_other_waits(cache, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    processes = [subprocess.Popen([sys.executable, "-c", ASK, tmp_path, name], env=environment) for name in "ab"]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "asked").read_text() in ("a", "b")


def written_to_a_terminal(monkeypatch) -> str:
    """What `progress_bar` writes when stderr is a terminal."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with progress_bar("the download", 100) as bar:
            bar.update(50)
            bar.refresh()
    written = b""
    with os.fdopen(reader, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # EIO is a terminal's end
        while part := screen.read(10_000):
            written += part
    return written.decode()


def test_the_progress_bar_shows_in_a_terminal_and_leaves_nothing(monkeypatch):
    written = written_to_a_terminal(monkeypatch)
    assert "the download" in written
    assert "50%" in written
    assert "\n" not in written
    assert written.endswith("\r")
    assert written.split("\r")[-2].strip() == ""  # the last thing drawn is a blank line


def test_the_progress_bar_is_silent_in_a_log(capfd):
    with progress_bar("the download", 100) as bar:
        bar.update(50)
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_shows_in_a_notebook():
    pytest.importorskip("ipywidgets")
    from tqdm.notebook import tqdm

    assert tqdm(total=1, disable=None, display=False).disable is False
