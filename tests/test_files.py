import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from eeutils.errors import StorageError
from eeutils.files import (
    atomic_path,
    cache_dir,
    exclusive,
    save_tensors,
    sha256_of_file,
    sha256_of_tensor,
    web_page,
    write_text,
)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EEUTILS_CACHE": "/chosen"}, Path("/chosen")),
        ({"EEUTILS_CACHE": "~/chosen"}, Path("~/chosen").expanduser()),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/eeutils")),
        ({"EEUTILS_CACHE": "", "XDG_CACHE_HOME": ""}, Path("~/.cache/eeutils").expanduser()),
        ({}, Path("~/.cache/eeutils").expanduser()),
    ],
)
def test_cache_dir_follows_the_environment(monkeypatch, environment, expected):
    for name in ("EEUTILS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == expected


def test_atomic_path_publishes_the_whole_file_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("content")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename, not a copy
    assert target.read_text() == "content"
    assert leftovers(tmp_path) == []


def test_what_takes_the_files_name_is_on_the_disk_and_may_be_read_by_all(tmp_path, monkeypatch):
    target, written = tmp_path / "file.txt", []
    monkeypatch.setattr(os, "fsync", lambda file: written.append((os.fstat(file).st_size, target.exists())))
    with atomic_path(target) as temporary:
        temporary.write_text("content")
    assert written == [(len("content"), False)]
    assert target.stat().st_mode & 0o777 == 0o644


def test_text_is_written_whole_or_not_at_all_whatever_the_machines_encoding(tmp_path):
    target = tmp_path / "new" / "file.txt"
    write_text(target, "93.5 ± 0.2 %")
    assert target.read_bytes() == "93.5 ± 0.2 %".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "half of it, then a lone surrogate \ud800")
    assert target.read_text("utf-8") == "93.5 ± 0.2 %"
    with pytest.raises(StorageError, match="cannot write"):
        write_text(target / "file.txt", "below a file")


def test_tensors_are_written_in_any_memory_order_with_what_is_said_of_them(tmp_path):
    target, tensor = tmp_path / "new" / "file.safetensors", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_tensors(str(target), {"x": tensor}, {"about": "it"})
    assert torch.equal(load_file(target)["x"], tensor)
    with safe_open(target, "pt") as opened:
        assert opened.metadata() == {"about": "it"}


def test_tensors_that_fill_the_disk_are_a_storage_error_and_keep_the_old_file(tmp_path, monkeypatch):
    def fail(*args) -> None:
        raise SafetensorError("No space left on device")

    target = tmp_path / "file.safetensors"
    target.write_text("old")
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(StorageError, match=r"file\.safetensors: No space left"):
        save_tensors(target, {"x": torch.ones(1)})
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "beginning"),
    [
        (b"\xef\xbb\xbf\n <!DOCTYPE html><p>Quota", "<!DOCTYPE html><p>Quota"),
        (b"<HTML>", "<HTML>"),
        (b"<?xml version", "<?xml version"),
        (b"<\x00\x00\x00\x00\x00\x00\x00{}", ""),  # as safetensors begin whose header has 60 bytes
        (b"PK\x03\x04<html>", ""),
        (b"", ""),
    ],
)
def test_a_web_page_is_told_from_a_file_by_how_it_begins(tmp_path, content, beginning):
    (tmp_path / "file").write_bytes(content)
    assert web_page(tmp_path / "file") == beginning


def test_atomic_path_keeps_the_old_file_if_the_block_fails(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ha")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_atomic_path_keeps_the_old_file_if_the_process_is_killed(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from eeutils.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('ha')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, target], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


# A path below a regular file cannot be written by anyone, root included.


@pytest.mark.parametrize("write", [atomic_path, exclusive])
def test_an_unwritable_folder_is_a_storage_error_with_path_and_remedy(tmp_path, write):
    (tmp_path / "regular").write_text("a file, not a folder")
    target = tmp_path / "regular" / "folder" / "file.txt"
    with pytest.raises(StorageError, match="EEUTILS_CACHE") as caught, write(target):
        pass
    assert str(target) in str(caught.value)
    assert (tmp_path / "regular").read_text() == "a file, not a folder"


def test_a_folder_in_the_files_place_is_a_storage_error(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(StorageError, match=r"file\.txt"), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("content")
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_a_storage_error_and_keeps_the_old_file(small_disk):
    target = small_disk / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(StorageError, match="No space left") as caught, atomic_path(target) as temporary:
        temporary.write_bytes(bytes(2**21))
    assert str(target) in str(caught.value)
    assert [path.name for path in small_disk.iterdir()] == ["file.bin"]
    assert target.read_bytes() == b"old"


def test_a_file_that_may_not_grow_is_a_storage_error_and_keeps_the_old_one(tmp_path):
    """As a full disk, for those who may not mount one."""
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        from eeutils.errors import StorageError
        from eeutils.files import atomic_path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with atomic_path(Path(sys.argv[1])) as temporary:
                temporary.write_bytes(bytes(8192))
        except StorageError as error:
            assert sys.argv[1] in str(error)
            sys.exit(7)
    """
    ended = subprocess.run([sys.executable, "-c", code, target], timeout=60, capture_output=True)
    assert ended.returncode == 7, ended.stderr.decode()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("write", [atomic_path, exclusive])
def test_a_read_only_file_system_is_a_storage_error(small_disk, write):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="Read-only"), write(small_disk / "file.bin"):
        pass
    assert list(small_disk.iterdir()) == []


def test_exclusive_can_be_taken_again_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), exclusive(tmp_path / "file"):
        raise RuntimeError("inside")
    with exclusive(tmp_path / "file"):
        pass


@pytest.mark.timeout(20)
def test_exclusive_makes_its_folder_and_is_for_one_file(tmp_path):
    with exclusive(tmp_path / "new" / "one"), exclusive(tmp_path / "new" / "other"):
        assert (tmp_path / "new").is_dir()


def test_exclusive_is_free_again_when_its_process_is_killed(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from eeutils.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], timeout=60, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    with exclusive(tmp_path / "file"):
        pass


def test_exclusive_keeps_another_process_out(tmp_path):
    """Each process appends "in" and "out"; were two inside at once, two "in" would follow each other."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from eeutils.files import exclusive\n"
        "log = Path(sys.argv[1])\n"
        "with exclusive(log), log.open('a', buffering=1) as file:\n"
        "    file.write('in\\n')\n"
        "    time.sleep(0.2)\n"
        "    file.write('out\\n')\n"
    )
    log = tmp_path / "log"
    processes = [subprocess.Popen([sys.executable, "-c", code, log]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 3


def test_a_tensor_and_a_file_of_the_same_bytes_have_the_same_sha256(tmp_path):
    tensor = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    (tmp_path / "bytes").write_bytes(bytes(range(24)))

    expected = hashlib.sha256(bytes(range(24))).hexdigest()
    assert sha256_of_tensor(tensor) == sha256_of_file(tmp_path / "bytes") == expected
    assert sha256_of_tensor(tensor.contiguous(memory_format=torch.channels_last)) == expected
