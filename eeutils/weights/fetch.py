"""From an entry's file to verified bytes on this disk: the repository's copy, the cache's, or a download."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from eeutils.download import web_page
from eeutils.errors import IntegrityError
from eeutils.files import cache_dir, exclusive, sha256_of_file, storage_error
from eeutils.sources import Source, first_that_delivers
from eeutils.weights.registry import StoredFile

TIMEOUT_S = (10.0, 30.0)
"""To connect, and between two pieces of an answer: a server that hangs is given up, a slow one is not."""


def local_file(file: StoredFile, folder: Path | None) -> Path:
    """Where the verified file lies on this disk, after fetching it into the cache if it has to be.

    A file that is there is used without a network. Several processes may ask at once: one fetches, the others wait.

    Args:
        file: which file.
        folder: the repository's weights folder, if there is one.

    Raises:
        IntegrityError: if the repository's copy is damaged.
        DataUnavailableError: if no source delivers it; the message says for each why, and what to do by hand.
        StorageError: if the cache cannot be written.
    """
    if folder is not None and "repository" in file.sources and (folder / file.path).is_file():
        return _intact_in_repository(folder / file.path, file)
    cached = cache_dir() / "weights" / file.path
    if _is_intact(cached, file):
        return cached
    with exclusive(cached):
        if not _is_intact(cached, file):
            _fetch(file, cached)
    return cached


def verify(path: Path, file: StoredFile) -> None:
    """Check that `path` holds `file`.

    Raises:
        IntegrityError: if it holds a web page, or its size or sha256 differ.
    """
    check_no_web_page(path)
    if file.size is not None and path.stat().st_size != file.size:
        raise IntegrityError(f"{path} has {path.stat().st_size} bytes, expected {file.size}")
    if file.sha256 is not None and (actual := sha256_of_file(path)) != file.sha256:
        raise IntegrityError(f"{path} has sha256 {actual[:16]}..., expected {file.sha256[:16]}...")


def check_no_web_page(path: Path) -> None:
    """Raise IntegrityError if the file is a web page."""
    if beginning := web_page(path):
        raise IntegrityError(f"the server answered a web page, not weights: {beginning!r}")


def _intact_in_repository(path: Path, file: StoredFile) -> Path:
    try:
        verify(path, file)
    except IntegrityError as error:
        raise IntegrityError(f"{error}. Restore it: git checkout -- {path}") from error
    return path


def _is_intact(path: Path, file: StoredFile) -> bool:
    try:
        verify(path, file)
    except (OSError, IntegrityError):
        return False
    return True


def _fetch(file: StoredFile, cached: Path) -> None:
    sources = [
        Source(name=source, fetch=partial(_fetch_from, source, file, cached), remedy=_remedy(source, file, cached))
        for source in file.sources
    ]
    first_that_delivers(file.path, sources)


def _fetch_from(source: str, file: StoredFile, cached: Path) -> None:
    if source == "repository":
        raise FileNotFoundError(f"there is no weights/{file.path} beside the package")
    if source.startswith("drive:"):
        _fetch_from_drive(source.removeprefix("drive:"), file, cached)
    else:
        _fetch_from_url(source, file, cached)


def _remedy(source: str, file: StoredFile, cached: Path) -> str:
    if source == "repository":
        return f"in a clone of the repository: git checkout -- weights/{file.path}"
    page = drive_page(source.removeprefix("drive:")) if source.startswith("drive:") else source
    return f"download {page} with a browser and save it as {cached}"


def drive_page(file_id: str) -> str:
    """The address of a Drive file for a browser."""
    return f"https://drive.google.com/file/d/{file_id}/view"


def _fetch_from_url(url: str, file: StoredFile, cached: Path) -> None:
    import pooch  # here and below: what is on the disk is used without the half second that these take to import
    import requests

    download = pooch.HTTPDownloader(timeout=TIMEOUT_S, progressbar=True)

    def download_and_sniff(url: str, output: str, registry: object) -> None:
        download(url, output, registry)
        check_no_web_page(Path(output))

    known_hash = None if file.sha256 is None else f"sha256:{file.sha256}"
    try:
        pooch.retrieve(url, known_hash, fname=cached.name, path=cached.parent, downloader=download_and_sniff)
    except requests.RequestException as error:  # an OSError, but no trouble with the disk
        raise ConnectionError(str(error)) from error
    except ValueError as error:  # how pooch reports another hash
        raise IntegrityError(f"the download is not the file that was published: {error}") from error
    except OSError as error:
        raise storage_error(cached, error) from error


def _fetch_from_drive(file_id: str, file: StoredFile, cached: Path) -> None:
    import gdown
    import requests

    with _folder_beside(cached) as folder:
        output = folder / cached.name
        try:
            gdown.download(id=file_id, output=str(output), timeout=TIMEOUT_S, use_cookies=False, retries=1)
        except requests.RequestException as error:
            raise ConnectionError(str(error)) from error
        except OSError as error:
            raise storage_error(cached, error) from error
        verify(output, file)
        output.replace(cached)


@contextmanager
def _folder_beside(cached: Path) -> Iterator[Path]:
    """A temporary folder on the same disk: what is left of a broken download goes away with it."""
    try:
        folder = tempfile.TemporaryDirectory(dir=cached.parent, prefix=f".{cached.name}.")
    except OSError as error:
        raise storage_error(cached, error) from error
    with folder as name:
        yield Path(name)
