import hashlib
import io
import os
import signal
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eeutils import files
from eeutils.errors import IntegrityError, StorageError
from eeutils.files import (
    atomic_path,
    cache_dir,
    exclusive,
    load_state,
    load_tensors,
    read_json,
    save_state,
    save_tensors,
    sha256_of_file,
    sha256_of_tensor,
    sweep,
    work_folder,
    write_text,
)
from tests.toys import kill_this_process, run_in_child, start_in_child

TENSORS = {"x": torch.arange(12.0).view(3, 4), "y": torch.ones(2, dtype=torch.bfloat16), "empty": torch.empty(0, 2)}
STATE = {"net": TENSORS, "epoch": 3, "rows": [{"loss": 1.5}]}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EEUTILS_CACHE": "~/chosen"}, Path("~/chosen").expanduser()),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/eeutils")),
        ({"EEUTILS_CACHE": "", "XDG_CACHE_HOME": ""}, Path("~/.cache/eeutils").expanduser()),
    ],
)
def test_cache_dir_follows_the_environment(monkeypatch, environment, expected):
    for name in ("EEUTILS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == expected


def test_atomic_path_syncs_before_it_renames(tmp_path, monkeypatch):
    target, written = tmp_path / "file.txt", []
    monkeypatch.setattr(os, "fsync", lambda file: written.append((os.fstat(file).st_size, target.exists())))
    with atomic_path(target) as temporary:
        temporary.write_text("content")
    assert written == [(len("content"), False)]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: save_tensors(path, TENSORS)])
def test_atomic_path_follows_the_umask(tmp_path, umask, mode, write):
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_atomic_path_writes_through_a_symlink_and_keeps_the_mode(tmp_path):
    real, link = tmp_path / "there" / "real.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o600)


@pytest.mark.parametrize("length", [241, 255])
def test_atomic_path_takes_any_name_that_the_file_system_takes(tmp_path, length):
    write_text(tmp_path / ("x" * length), "content")
    with exclusive(tmp_path / ("x" * length)), work_folder(tmp_path / ("x" * length)):
        pass
    assert (tmp_path / ("x" * length)).read_text() == "content"


@pytest.mark.parametrize("killed", [False, True])
def test_atomic_path_keeps_the_old_file_if_the_block_fails_or_is_killed(tmp_path, killed):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ha")
            (temporary.parent / "more").mkdir()
            if killed:
                kill_this_process()
            raise RuntimeError("half-way")

    assert run_in_child(write_half) == (-signal.SIGKILL if killed else 1)
    assert target.read_text() == "old"
    assert killed or names_in(tmp_path) == {"file.txt"}
    write_text(target, "new")
    assert target.read_text() == "new"
    assert names_in(tmp_path) == {"file.txt"}  # what was killed is tidied up


def test_work_folder_is_emptied_unless_resumed(tmp_path):
    target = tmp_path / "file"

    def interrupted(resume: bool) -> None:
        with suppress(KeyboardInterrupt), work_folder(target, resume=resume) as folder:
            (folder / "part").write_text("ha")
            raise KeyboardInterrupt

    for resume, left in ((False, set()), (True, {".file.work", "part"})):
        interrupted(resume)
        assert names_in(tmp_path) == left
    for resume, found in ((True, {"part"}), (False, set())):
        interrupted(resume=True)
        with work_folder(target, resume=resume) as folder:
            assert names_in(folder) == found
        assert names_in(tmp_path) == set()


@pytest.mark.parametrize("write", [atomic_path, exclusive, work_folder])
def test_storing_names_an_unwritable_folder(tmp_path, write):
    """A path below a regular file cannot be written by anyone, root included."""
    (tmp_path / "regular").write_text("a file, not a folder")
    target = tmp_path / "regular" / "folder" / "file.txt"
    with pytest.raises(StorageError, match="EEUTILS_CACHE") as caught, write(target):
        pass
    assert str(target) in str(caught.value)
    assert (tmp_path / "regular").read_text() == "a file, not a folder"


@pytest.mark.parametrize("save", [save_tensors, save_state, write_text])
def test_storing_names_a_full_disk_and_keeps_the_old_file(small_disk, save):
    target = small_disk() / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(StorageError, match=rf"(?s)No space left.*{target}|{target}.*No space left"):
        save(target, "x" * 2**21 if save is write_text else {"x": torch.zeros(2**19)})
    assert names_in(target.parent) == {"file.bin"}
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("write", [atomic_path, exclusive])
def test_storing_names_a_read_only_disk(small_disk, write):
    with pytest.raises(StorageError, match="Read-only"), write(small_disk("ro") / "file.bin"):
        pass
    assert list(small_disk().iterdir()) == []


def test_exclusive_without_waiting_names_the_holder_and_is_free_when_that_is_killed(tmp_path):
    target = tmp_path / "file"

    def hold() -> None:
        with exclusive(target):
            kill_this_process()

    assert run_in_child(hold) == -signal.SIGKILL
    refused = pytest.raises(StorageError, match=f"process {os.getpid()} on .*file")
    with exclusive(target, wait=False), refused, exclusive(target, wait=False):
        pass


def test_exclusive_keeps_other_processes_out_and_says_that_it_waits(tmp_path, capfd):
    """Each process appends "in" and "out"; were two inside at once, two "in" would follow each other."""
    log = tmp_path / "log"

    def enter() -> None:
        with exclusive(log), log.open("a", buffering=1) as file:
            file.write("in\n")
            time.sleep(0.1)
            file.write("out\n")

    with exclusive(log):
        children = [start_in_child(enter) for _ in range(3)]
        said = ""
        while said.count(str(log)) < 3:
            said += capfd.readouterr().err
            time.sleep(0.01)
    assert [wait() for wait in children] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 3


def test_save_tensors_writes_any_memory_order_and_metadata(tmp_path):
    target, tensor = tmp_path / "new" / "file.safetensors", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_tensors(str(target), {"x": tensor}, {"about": "it"})
    assert torch.equal(load_file(target)["x"], tensor)
    with safe_open(target, "pt") as opened:
        assert opened.metadata().keys() == {"about", "sha256"}
    tensors, metadata = load_tensors(str(target))
    assert torch.equal(tensors["x"], tensor)
    assert metadata == {"about": "it"}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_load_tensors_takes_files_of_other_libraries(tmp_path, metadata):
    save_file({"x": torch.ones(2)}, tmp_path / "theirs", metadata)
    tensors, found = load_tensors(tmp_path / "theirs")
    assert tensors["x"].tolist() == [1, 1]
    assert found == (metadata or {})


@pytest.mark.parametrize("load", [load_tensors, load_state, read_json])
def test_reading_tells_a_missing_file_from_a_damaged_one(tmp_path, load):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_save_state_writes_what_torch_reads_too(tmp_path):
    save_state(tmp_path / "state.pt", STATE)
    for state in (load_state(tmp_path / "state.pt"), torch.load(tmp_path / "state.pt", weights_only=True)):
        assert (state["epoch"], state["rows"]) == (3, [{"loss": 1.5}])
        assert all(torch.equal(state["net"][name], tensor) for name, tensor in TENSORS.items())


def test_load_state_executes_nothing(tmp_path):
    class Calls:
        def __reduce__(self):
            return print, ("called",)

    save_state(tmp_path / "state.pt", {"x": Calls()})
    with pytest.raises(IntegrityError, match=r"state\.pt"):
        load_state(tmp_path / "state.pt")


def test_load_state_refuses_a_name_of_a_megabyte_at_once(tmp_path):
    """A search of torch's for hints about the error takes time quadratic in the name."""
    torch.save({}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(content := io.BytesIO(), "w") as new:
        for name in old.namelist():
            hostile = b"\x80\x02c" + b"[" * 1_000_000 + b"\nx\n."
            new.writestr(name, hostile if name.endswith("data.pkl") else old.read(name))
    sealed = content.getvalue() + files._STATE_MARK + hashlib.sha256(content.getvalue()).digest()
    (tmp_path / "state.pt").write_bytes(sealed)
    with pytest.raises(IntegrityError, match=r"state\.pt"):
        load_state(tmp_path / "state.pt")


def test_sweep_removes_what_a_killed_process_left_beside_a_whole_target(tmp_path):
    target = tmp_path / "target"
    target.write_text("whole")

    def leave() -> None:
        with exclusive(target), work_folder(target, resume=True) as folder:
            (folder / "download").write_text("left")
            kill_this_process()

    assert run_in_child(leave) == -signal.SIGKILL
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > len("whole")
    with exclusive(target):
        sweep(target)  # nothing while another is at work
    assert (tmp_path / ".target.work" / "download").exists()
    sweep(target)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == ["target"]


@pytest.fixture(scope="module", params=["tensors", "state"])
def whole(request, tmp_path_factory) -> tuple[bytes, Callable[[bytes], object]]:
    """A file's content, and a function that reads such a file back, comparable."""
    path = tmp_path_factory.mktemp("whole") / "file"
    if request.param == "tensors":
        save_tensors(path, TENSORS, {"about": "it"})
    else:
        save_state(path, STATE)

    def read(content: bytes) -> object:
        path.write_bytes(content)
        if request.param == "tensors":
            tensors, rest = load_tensors(path)
        else:
            rest = load_state(path)
            tensors = rest.pop("net")
        return {name: tensor.tolist() for name, tensor in tensors.items()}, rest

    return path.read_bytes(), read


@given(data=st.data())
def test_load_tensors_and_load_state_find_flipped_bits(whole, data):
    content, read = whole
    expected, damaged = read(content), bytearray(content)
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(IntegrityError):
        assert read(bytes(damaged)) == expected


@given(share=st.floats(0, 1, exclude_max=True))
def test_load_tensors_and_load_state_find_a_truncated_file(whole, share):
    content, read = whole
    with pytest.raises(IntegrityError, match="file"):
        read(content[: int(len(content) * share)])


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{'a': 1}"])
def test_read_json_says_which_file_is_damaged(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"file\.json"):
        read_json(tmp_path / "file.json")


def test_sha256_of_tensor_is_that_of_its_bytes(tmp_path):
    tensor = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    (tmp_path / "bytes").write_bytes(bytes(range(24)))
    expected = hashlib.sha256(bytes(range(24))).hexdigest()
    assert sha256_of_tensor(tensor) == sha256_of_file(tmp_path / "bytes") == expected
    assert sha256_of_tensor(tensor.contiguous(memory_format=torch.channels_last)) == expected
    assert sha256_of_tensor(torch.tensor(2.5)) == hashlib.sha256(b"\0\0\x20\x40").hexdigest()
