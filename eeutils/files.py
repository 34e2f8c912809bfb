"""Where files are kept, and how they are written: whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from eeutils.errors import StorageError


def cache_dir() -> Path:
    """The folder for fetched data and weights: $EEUTILS_CACHE, or `eeutils` in the user's cache folder."""
    if chosen := os.environ.get("EEUTILS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eeutils"


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Let one process at a time make `target`; the others wait. The lock goes with the process that holds it.

    Raises:
        StorageError: if the folder cannot be written.
    """
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise storage_error(target, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name when the block ends well, and is removed otherwise.

    A reader sees the old file or the whole new one, also after a crash.

    Raises:
        StorageError: if the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise storage_error(target, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        StorageError: if the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def storage_error(path: Path, error: Exception) -> StorageError:
    """An error that says which path could not be written and what to do about it."""
    return StorageError(
        f"cannot write {path}: {error}. Free some space or make the folder writable, or choose another: the one for "
        "fetched data and weights is set by EEUTILS_CACHE."
    )
