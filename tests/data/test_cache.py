import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data, verify_content
from eeutils.download import Source
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from eeutils.files import sha256_of_tensor
from tests.toys import kill_this_process, run_in_child


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
    return {part: Content(tuple(tensor.shape), sha256_of_tensor(tensor)) for part, tensor in data.items()}


CONTENT = content_of(small_data())
NO_HASH = {"images": Content((4, 3, 8, 8)), "labels": Content((None,))}


def fetched(answer: RawData | BaseException, content: dict[str, Content] = CONTENT) -> RawData:
    """Ask for the data set "small", with one source that answers."""
    return cached_data("small", content, lambda folder: [Source("one", Mock(side_effect=[answer]), remedy="mend one")])


def same(data: RawData, expected: RawData) -> bool:
    return data.keys() == expected.keys() and all(torch.equal(data[part], expected[part]) for part in expected)


def names_in(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("content", [CONTENT, NO_HASH], ids=["hash", "no hash"])
@pytest.mark.parametrize(
    "changes", [{"labels": None}, {"images": small_data()["images"][:3]}, {"labels": small_data()["labels"].char()}]
)
def test_verify_content_refuses_another_form(changes, content):
    data = {part: tensor for part, tensor in {**small_data(), **changes}.items() if tensor is not None}
    with pytest.raises(IntegrityError, match=next(iter(changes))):
        verify_content(data, content)


def test_cached_data_asks_the_next_source_for_the_expected_content(empty_cache):
    sources = [Source(name, lambda data=data: data, "") for name, data in {"a": altered(), "b": small_data()}.items()]
    assert same(cached_data("small", CONTENT, lambda folder: sources), small_data())


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
        lambda path: save_file({"images": small_data()["images"]}, path),
        lambda path: save_file(altered(), path),
        make_it_a_dangling_link,
    ],
)
def test_cached_data_fetches_once_and_again_if_the_cache_file_is_damaged(empty_cache, damage, content):
    assert same(fetched(small_data(), content=content), small_data())
    assert same(fetched(OSError("unplugged"), content=content), small_data())
    assert names_in(empty_cache) == ["small.safetensors"]
    damage(empty_cache / "small.safetensors")
    with pytest.raises(DataUnavailableError, match="unplugged"):
        fetched(OSError("unplugged"), content=content)
    assert same(fetched(small_data(), content=content), small_data())
    assert same(load_file(empty_cache / "small.safetensors"), small_data())


def test_cached_data_finds_a_full_disk_before_it_fetches(small_disk, monkeypatch):
    cache = small_disk()
    monkeypatch.setenv("EEUTILS_CACHE", str(cache))
    large = {"images": torch.zeros(2**21, dtype=torch.uint8)}
    with pytest.raises(StorageError, match="No space left"):
        fetched(OSError("asked"), content=content_of(large))
    assert names_in(cache) == []


def test_cached_data_reads_from_a_read_only_disk(small_disk, monkeypatch):
    monkeypatch.setenv("EEUTILS_CACHE", str(small_disk()))
    fetched(small_data())
    small_disk("ro")
    assert same(fetched(OSError("unplugged")), small_data())


def test_cached_data_lets_one_of_two_who_ask_fetch(empty_cache):
    asked: list[str] = []

    def fetch() -> RawData:
        asked.append("slow")
        time.sleep(0.2)
        return small_data()

    with ThreadPoolExecutor(2) as pool:
        sources = lambda folder: [Source("slow", fetch, "")]  # noqa: E731
        answers = list(pool.map(lambda _: cached_data("small", CONTENT, sources), range(2)))
    assert all(same(answer, small_data()) for answer in answers)
    assert asked == ["slow"]


def test_cached_data_sweeps_what_a_killed_fetch_left(empty_cache):
    def killed(folder: Path) -> RawData:
        (folder / "half").write_bytes(b"x" * 1000)
        kill_this_process()

    sources = lambda folder: [Source("slow", lambda: killed(folder), "")]  # noqa: E731
    assert run_in_child(lambda: cached_data("small", CONTENT, sources)) == -signal.SIGKILL
    assert list(empty_cache.rglob("half"))
    assert same(fetched(small_data()), small_data())
    assert names_in(empty_cache) == ["small.safetensors"]
