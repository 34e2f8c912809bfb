"""Verified files of the registry: the repository's copy, the cache's, or a download."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import eeutils
from eeutils.download import TIMEOUT_S, Source, check_no_web_page, check_online, download, first_that_delivers, passes
from eeutils.errors import IntegrityError
from eeutils.files import cache_dir, exclusive, sha256_of_file, storing, sweep, work_folder, write_text
from eeutils.weights.registry import StoredFile

_LARGEST = 1 << 30  # of a file whose size nobody knows

Check = Callable[[Path], object]


def local_file(file: StoredFile, folder: Path | None, check_readable: Check | None = None) -> Path:
    """Return the path of the verified file, after fetching it into the cache if necessary.

    A file that is there is used without a network. Several processes may ask at once: one fetches, the others wait.

    Args:
        file: the file of an entry.
        folder: the repository's weights folder, if there is one.
        check_readable: decides about a file whose sha256 is unknown; the first that passes has its sha256 noted beside
            it, and no other is accepted from then on.

    Raises:
        IntegrityError: if the repository's copy is damaged.
        DataUnavailableError: if no source delivers the file; the message gives each reason, and the remedy by hand.
        StorageError: if the cache cannot be written.
    """
    if folder is not None and "repository" in file.sources and (folder / file.path).is_file():
        verify(folder / file.path, file, f"; restore it: git checkout -- {folder / file.path}")
        return folder / file.path
    cached = cache_dir() / "weights" / file.path
    check = partial(_check, file=file, note=cached.with_name(f"{cached.name}.sha256"), check_readable=check_readable)
    if not passes(check, cached):
        with exclusive(cached):
            if not passes(check, cached):
                cached.unlink(missing_ok=True)
                _fetch(file, cached, check)
    sweep(cached)
    return cached


def verify(path: Path, file: StoredFile, remedy: str = "") -> None:
    """Raise IntegrityError, its message ending in `remedy`, unless `path` holds `file`."""
    if file.size not in (None, size := path.stat().st_size):
        raise IntegrityError(f"{path} has {size} bytes, expected {file.size}{remedy}")
    check_no_web_page(path)
    if file.sha256 is not None and (actual := sha256_of_file(path)) != file.sha256:
        raise IntegrityError(f"{path} has sha256 {actual[:16]}..., expected {file.sha256[:16]}...{remedy}")


def release_tag() -> str:
    """Return the tag of this version in the repository; it names the files that this version fetches."""
    return f"v{eeutils.__version__}"


def release_addresses(path: str) -> tuple[str, str]:
    """Return the addresses of a shipped file: below the tag, else, before that is there, on the default branch."""
    base = eeutils.__repository__.replace("//github.com/", "//raw.githubusercontent.com/")
    return tuple(f"{base}/{name}/weights/{path}" for name in (release_tag(), "HEAD"))


def drive_page(file_id: str) -> str:
    """Return the address of a Drive file for a browser."""
    return f"https://drive.google.com/file/d/{file_id}/view"


def _check(path: Path, file: StoredFile, note: Path, check_readable: Check | None) -> None:
    verify(path, file)
    if file.sha256 is not None or check_readable is None:
        return
    if not note.exists():
        check_readable(path)
        write_text(note, sha256_of_file(path) + "\n")
    elif sha256_of_file(path) != note.read_text("utf-8", "replace").strip():
        raise IntegrityError(f"{path} is not the file of the first download; delete {note} to accept another")


def _fetch(file: StoredFile, cached: Path, check: Check) -> None:
    sources = []
    for source in file.sources:
        if source.startswith("drive:"):
            file_id = source.removeprefix("drive:")
            pages = {drive_page(file_id): partial(_fetch_from_drive, file_id, file, cached, check)}
        else:
            addresses = release_addresses(file.path) if source == "repository" else [source]
            pages = {each: partial(download, each, cached, check, size=file.size) for each in addresses}
        for page, fetch in pages.items():
            sources.append(Source(page, fetch, f"download {page} with a browser and save it as {cached}"))
    in_a_clone = f"In a clone of the repository: git checkout -- weights/{file.path}"
    first_that_delivers(file.path, sources, in_a_clone if "repository" in file.sources else "")


def _fetch_from_drive(file_id: str, file: StoredFile, cached: Path, check: Check) -> None:
    import gdown  # here: what is on the disk is used without the time that these take to import
    import requests

    def stop_at_size(received: int, _total: int | None) -> None:
        if received > (limit := file.size or _LARGEST):
            raise ConnectionError(f"the server sends more than {limit:,} bytes")

    check_online()
    with work_folder(cached) as folder, storing(cached):
        output = folder / cached.name
        options = {"timeout": TIMEOUT_S, "use_cookies": False, "retries": 2, "progress": stop_at_size}
        try:
            gdown.download(id=file_id, output=str(output), **options)
        except requests.RequestException as error:
            raise ConnectionError(str(error)) from error
        check(output)
        output.replace(cached)
