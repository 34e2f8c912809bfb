"""Files: where they are kept, how they are written (whole or not at all), and how damage to them is found.

Writers raise a StorageError, readers an IntegrityError for a damaged file and an OSError for one that does not open.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from eeutils.errors import IntegrityError, StorageError, require

try:
    import fcntl
except ImportError:  # Windows, where two writers of one file are kept apart by `exclusive` alone
    fcntl = None

if TYPE_CHECKING:
    from torch import Tensor

_CHECKSUM = "sha256"  # key in a safetensors file's metadata
_STATE_MARK = b"\neeutils sha256 "  # between torch's zip file and the digest of its bytes


def cache_dir() -> Path:
    """Return the folder for fetched data and weights: $EEUTILS_CACHE, or `eeutils` in the user's cache folder."""
    chosen = os.environ.get("EEUTILS_CACHE")
    base = chosen or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / ("" if chosen else "eeutils")
    except RuntimeError as error:
        raise StorageError(f"cannot expand {base}: there is no home folder; set EEUTILS_CACHE to a folder") from error


@contextmanager
def exclusive(target: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time make `target`; wait for another and say so on stderr, or raise a StorageError.

    The lock ends with the process that holds it.
    """
    path = _beside(target, "lock")
    lock = FileLock(path)
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            message = f"{path.read_text() or 'another process'} is writing {target}"
            if not wait:
                raise StorageError(message) from None
            print(f"waiting: {message}", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        with suppress(OSError):  # a full disk keeps no one from locking
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            path.write_bytes(b"")
        lock.release()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path that takes the place of `target` when the block succeeds, and is removed otherwise.

    A reader sees the old file or the whole new one, also after a crash. Two writers of one target take turns; the last
    one wins. What a killed writer left behind is removed by the next. Symlinks are written through, modes are kept.
    """
    target = Path(os.path.realpath(target))
    with work_folder(target, kind="part") as folder, storing(target):
        temporary = folder / target.name
        temporary.touch()  # with the mode that the umask allows
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)


@contextmanager
def work_folder(target: Path, *, resume: bool = False, kind: str = "work") -> Iterator[Path]:
    """Yield a folder beside `target` for the files it is made from; it is removed when the block ends.

    Its name, `.<name>.<kind>`, is always the same, so that the next call takes over what a killed process left. Others
    wait meanwhile. With `resume` it keeps what an earlier call left, and stays if the block raises.
    """
    folder = _beside(target, kind)
    with storing(target):
        lock = _locked(folder)
        if not resume:
            _empty(folder)
    finished = False
    try:
        yield folder
        finished = True
    finally:
        if finished or not resume or not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(target: Path) -> None:
    """Remove what a killed process left beside `target`, which is whole: its lock's text, and its work folder."""
    lock = _beside(target, "lock")
    if _beside(target, "work").exists() or (lock.exists() and lock.stat().st_size):
        with suppress(StorageError), exclusive(target, wait=False), work_folder(target):
            pass


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    with reading(path):
        return json.loads(path.read_text("utf-8"))


def save_tensors(path: Path | str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with a checksum of its content, whole or not at all."""
    from safetensors.torch import save_file  # here: locking and writing text need no torch

    path, metadata = Path(path), dict(metadata or {})
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with storing(path), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata | {_CHECKSUM: _content_sha256(tensors, metadata)})


def load_tensors(path: Path | str) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file, and check the content against the checksum in it.

    A file without metadata, or with the `format` that other libraries note, needs no checksum.
    """
    with reading(path), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        # Copies, as a tensor of safetensors changes with the file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no dict
        expected = metadata.pop(_CHECKSUM, None)
        needs_none = expected is None and (not metadata or "format" in metadata)
        require(needs_none or expected == _content_sha256(tensors, metadata), "its content does not match its sha256")
    return tensors, metadata


def save_state(path: Path | str, state: Any) -> None:
    """Write `torch.save(state)` followed by a checksum, whole or not at all; `torch.load` reads it, too."""
    import torch

    buffer = io.BytesIO()  # torch hides the cause when the disk is full
    torch.save(state, buffer)
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(_STATE_MARK + hashlib.sha256(buffer.getbuffer()).digest())


def load_state(path: Path | str) -> Any:
    """Read what `save_state` wrote, onto the CPU; nothing in it is executed."""
    import torch
    from torch import _weights_only_unpickler as inert

    with reading(path):
        content = memoryview(Path(path).read_bytes())
        split = max(0, len(content) - len(_STATE_MARK) - hashlib.sha256().digest_size)
        content, mark = content[:split], content[split:]
        require(mark == _STATE_MARK + hashlib.sha256(content).digest(), "its content does not match its sha256")
        # As with weights_only=True, whose hints about an error take hours to make if a name in the file is long.
        return torch.load(io.BytesIO(content), map_location="cpu", pickle_module=inert, weights_only=False)


def sha256_of_tensor(tensor: "Tensor") -> str:
    """Return the sha256 of a tensor's bytes, the same on every device and in every memory format."""
    import torch

    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def reading(path: Path | str, *, keep: type[Exception] = IntegrityError) -> Iterator[None]:
    """Turn whatever the block raises, but for `keep`, into an IntegrityError that names the file and the remedy.

    A file that cannot be opened is not a damaged one: its OSError is raised.
    """
    Path(path).open("rb").close()
    try:
        yield
    except (IntegrityError, keep):
        raise
    except Exception as error:  # readers of damaged files raise what they please
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{path} is damaged or of another kind ({reason[:200]}); restore or remake it") from error


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an error of writing into a StorageError that names the file, the cause and the remedy."""
    try:
        yield
    except (StorageError, ConnectionError):
        raise
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        number = getattr(error, "errno", None)
        why = f"{error}; choose a folder that is writable (EEUTILS_CACHE sets the one for fetched data and weights)"
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            why = f"No space left on the disk of {path.parent}; free some"
        elif number == errno.ENAMETOOLONG:
            why = "its name is too long; choose a shorter one"
        raise StorageError(f"cannot write {path}: {why}") from error


def check_room(path: Path, num_bytes: int) -> None:
    """Raise a StorageError if the disk has no room for so many bytes in the folder of `path`."""
    with storing(path):
        if num_bytes > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, "No space left")


def _locked(folder: Path) -> int:
    """Make `folder`, wait until no one else holds it, and return the handle that holds it until it is closed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if fcntl is None:
            return os.open(os.devnull, os.O_RDONLY)
        with suppress(FileNotFoundError):  # the holder removes the folder when it is done
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # some network file systems lock no folders
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
                return lock
            os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _beside(target: Path, kind: str) -> Path:
    """Return the hidden path `.<name>.<kind>` beside `target`, with a digest for a name that would become too long."""
    name = os.fsencode(target.name)
    short = target.name if len(name) <= 240 else hashlib.sha256(name).hexdigest()
    return target.with_name(f".{short}.{kind}")


def _content_sha256(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {sha256_of_tensor(tensor)}\n".encode())
    return digest.hexdigest()
