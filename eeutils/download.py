"""Downloads over HTTP, bounded, retried, resumed and checked, and the places to get something, one after the other."""

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from tqdm.auto import tqdm

from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from eeutils.files import cache_dir, check_room, storing, work_folder

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of an answer: this gives up a server that hangs, but not a slow one."""
BACKOFF_S = 1.0
"""Wait before the second attempt; doubled before each further one."""
_ATTEMPTS = 4
_LONGEST_WAIT_S = 60.0
_LARGEST = 4 << 30  # where nobody says the size


class _TryAgainError(Exception):
    """A failure that may not happen again."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s  # None: only if some bytes have come


def check_online() -> None:
    """Raise ConnectionError if EEUTILS_OFFLINE is set."""
    if os.environ.get("EEUTILS_OFFLINE", "0") not in ("", "0"):
        raise ConnectionError("EEUTILS_OFFLINE is set, so nothing is downloaded")


def download(url: str, target: Path, check: Callable[[Path], None], *, size: int | None = None) -> None:
    """Fetch `url` into `target`, whole and checked or not at all; nothing longer than `size` is accepted.

    An interrupted download is resumed by the next call, if the server can. `check` raises IntegrityError for another
    file. A server that cannot be reached, fails, stops half-way or sends too much is a ConnectionError.
    """
    check_online()
    with work_folder(target, resume=True) as folder, storing(target):
        part = folder / target.name
        try:
            resumed = part.exists()
            _fetch(url, part, size)
            if resumed and not passes(check, part):  # an earlier call left a part of another file
                part.unlink()
                _fetch(url, part, size)
            check(part)
        except Exception as error:
            if not (isinstance(error, ConnectionError) and _size(part)):  # what has come of the file is kept
                part.unlink(missing_ok=True)
            raise
        part.replace(target)


def passes(check: Callable[[Path], object], path: Path) -> bool:
    """Return False if the file is missing or `check` finds it damaged."""
    try:
        check(path)
    except (OSError, IntegrityError):
        return False
    return True


def check_no_web_page(path: Path) -> None:
    """Raise IntegrityError if the file is a web page, which sites send when they want a sign-in or a quota is spent."""
    with path.open("rb") as opened:
        beginning = opened.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    if beginning.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<?xml")):
        raise IntegrityError(f"the server answered a web page: {beginning[:60].decode('utf-8', 'replace')!r}")


def _fetch(url: str, part: Path, size: int | None) -> None:
    most = 0
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch_rest(url, part, size)
        except _TryAgainError as error:
            have = _size(part)
            if attempt == _ATTEMPTS - 1 or (error.wait_s is None and have <= most):
                raise ConnectionError(str(error)) from error
            most = max(most, have)
            time.sleep(min(max(error.wait_s or 0.0, BACKOFF_S * 2**attempt), _LONGEST_WAIT_S))


def _fetch_rest(url: str, part: Path, size: int | None) -> None:
    """Append what `part` lacks, or write it anew where the server cannot resume."""
    import requests  # here: what is on the disk is used without the time that this takes to import
    import urllib3

    have = _size(part)
    if have and have == size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            _copy(answer, part, _start(answer, part, have), size)
    except requests.RequestException as error:
        raise ConnectionError(str(error)) from error
    except urllib3.exceptions.HTTPError as error:  # in the middle of the file
        raise _TryAgainError(str(error)) from error


def _start(answer: "Response", part: Path, have: int) -> int:
    """Return how many bytes the answer skips."""
    if answer.status_code in (429, 503):
        asked = answer.headers.get("Retry-After", "")
        raise _TryAgainError(f"{answer.status_code} {answer.reason}", float(asked) if asked.isdecimal() else 0.0)
    if answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return have
    if answer.status_code in (206, 416):  # another part, or none: it is another file
        part.unlink(missing_ok=True)
        raise _TryAgainError("the server cannot resume", 0.0)
    answer.raise_for_status()
    return 0


def _copy(answer: "Response", part: Path, have: int, size: int | None) -> None:
    length = answer.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    if size is not None and total not in (None, size):
        raise ConnectionError(f"the server offers {total:,} bytes, expected {size:,}")
    expected = size or total
    check_room(part, (expected or have) - have)
    limit = expected or _LARGEST
    with part.open("ab" if have else "wb") as file, progress_bar(part.name, expected, initial=have) as bar:
        for chunk in answer.raw.stream(1 << 16, decode_content=False):
            have += len(chunk)
            if have > limit:
                file.truncate(0)
                raise ConnectionError(f"the server sends more than {limit:,} bytes")
            file.write(chunk)
            bar.update(len(chunk))
    if expected is not None and have < expected:
        raise _TryAgainError(f"the server stopped after {have:,} of {expected:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@dataclass(frozen=True)
class Source(Generic[T]):
    """A place to get something from."""

    name: str  # for messages
    fetch: Callable[[], T]  # returns the thing, or raises an error that says why it cannot
    remedy: str  # what a person can do to make this source work
    slow: str | None = None  # duration to warn about, together with the reasons why no faster source delivered


def first_that_delivers(
    what: str, sources: Sequence[Source[T]], otherwise: str = "", check: Callable[[T], object] = lambda found: None
) -> T:
    """Ask the sources in order of preference, and return `what` the first one delivers and `check` lets pass.

    Raises:
        DataUnavailableError: if none delivers; the message lists reasons and remedies, then says `otherwise`.
        StorageError: if a source cannot write; no other source is asked.
    """
    failures = []
    for source in sources:
        if source.slow and failures:
            faster = "\n".join(failures)
            warnings.warn(f"{what} comes from the {source.name}: {source.slow}. Faster:\n{faster}", stacklevel=2)
        try:
            found = source.fetch()
            check(found)
            return found
        except StorageError:
            raise
        except Exception as error:  # whatever goes wrong in one source, the next gets its turn
            reason = str(error).strip() or type(error).__name__
            failures.append(f"  - {source.name}: {reason}\n    -> {source.remedy}")
    lines = [f"no source could deliver {what}. Tried, in this order:", *failures, otherwise]
    raise DataUnavailableError("\n".join(lines).strip())


def local_folders() -> list[Path]:
    """Folders that may hold the user's own copy: $EEUTILS_DATA (by default `data`) and the cache folder."""
    return list(dict.fromkeys([Path(os.environ.get("EEUTILS_DATA", "data")).expanduser(), cache_dir()]))


def check_hash(path: Path, algorithm: str, expected: str) -> None:
    """Raise IntegrityError unless the file has the expected hash (hexadecimal)."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != expected:
        check_no_web_page(path)
        raise IntegrityError(f"{path.name} has {algorithm} {actual[:16]}..., expected {expected[:16]}...")


def progress_bar(description: str, total: int | None, unit: str = "B", initial: int = 0) -> tqdm:
    """Progress bar for a notebook or a terminal; silent where stderr is a file or a pipe."""
    options = {"unit_scale": True, "file": sys.stderr, "leave": False, "disable": None}
    return tqdm(desc=description, total=total, initial=initial, unit=unit, **options)
