"""Places to get a thing from, asked one after the other."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from eeutils.errors import DataUnavailableError, StorageError

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """A place to get something from, such as a data set or a file.

    Attributes:
        name: how messages call it.
        fetch: returns it, or raises with the reason why it cannot.
        remedy: what a person can do so that it works.
        slow: how long it may take, where that is worth a warning that says why no quicker source delivered.
    """

    name: str
    fetch: Callable[[], T]
    remedy: str
    slow: str | None = None


def first_that_delivers(what: str, sources: Sequence[Source[T]], otherwise: str = "") -> T:
    """Ask the sources in order; the first that does not raise wins.

    Args:
        what: how messages call it.
        sources: where to get it.
        otherwise: what to do without any of them, for the message.

    Raises:
        DataUnavailableError: if none delivers; it says for each why, and what to do by hand.
        StorageError: if one has nowhere to write what it gets: the next would not have, either.
    """
    failures = []
    for source in sources:
        if source.slow and failures:
            quicker = "\n".join(failures)
            warnings.warn(f"{what} comes from the {source.name}: {source.slow}. Quicker:\n{quicker}", stacklevel=2)
        try:
            return source.fetch()
        except StorageError:
            raise
        except Exception as error:  # whatever goes wrong in one source, the next gets its turn
            reason = str(error).strip() or type(error).__name__
            failures.append(f"  - {source.name}: {reason}\n    -> {source.remedy}")
    lines = [f"no source could deliver {what}. Tried, in this order:", *failures, otherwise]
    raise DataUnavailableError("\n".join(lines).strip())
