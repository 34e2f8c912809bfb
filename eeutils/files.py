"""Where files are kept, and how they are written: whole or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from safetensors import SafetensorError

from eeutils.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor


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


def save_tensors(path: Path | str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; tensors in any memory order.

    Raises:
        StorageError: if the file cannot be written.
    """
    from safetensors.torch import save_file  # here: who locks or writes text does not wait for torch

    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise storage_error(path, error) from error


def sha256_of_tensor(tensor: "Tensor") -> str:
    """Of a tensor's bytes, in hexadecimal; the same on every device and in every memory format."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def web_page(path: Path) -> str:
    """How the file begins if it is a web page, else "".

    Sites send one in the file's place when they want a sign-in, a quota is spent, or the file has moved.
    """
    with path.open("rb") as opened:
        beginning = opened.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    is_page = beginning.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<?xml"))
    return beginning[:60].decode("utf-8", "replace") if is_page else ""


def storage_error(path: Path, error: Exception) -> StorageError:
    """An error that says which path could not be written and what to do about it."""
    return StorageError(
        f"cannot write {path}: {error}. Free some space or make the folder writable, or choose another: the one for "
        "fetched data and weights is set by EEUTILS_CACHE."
    )
