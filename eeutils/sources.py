"""Places to get a dataset or a file from, asked one after the other."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tqdm.auto import tqdm

from eeutils.download import web_page
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError
from eeutils.files import cache_dir

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """A place to get something from.

    Attributes:
        name: for messages.
        fetch: returns the thing, or raises an error that says why it cannot.
        remedy: what a person can do to make this source work.
        slow: duration to warn about, together with the reasons why no faster source delivered.
    """

    name: str
    fetch: Callable[[], T]
    remedy: str
    slow: str | None = None


def first_that_delivers(what: str, sources: Sequence[Source[T]], otherwise: str = "") -> T:
    """Ask the sources in order of preference, and return `what` the first one delivers.

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
            return source.fetch()
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
        page = ", it is a web page" if web_page(path) else ""
        raise IntegrityError(f"{path.name} has {algorithm} {actual[:16]}..., expected {expected[:16]}...{page}")


def progress_bar(description: str, total: int, unit: str = "B") -> tqdm:
    """Progress bar for a notebook or a terminal; silent where stderr is a file or a pipe."""
    return tqdm(desc=description, total=total, unit=unit, unit_scale=True, file=sys.stderr, leave=False, disable=None)
