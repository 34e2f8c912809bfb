"""Exceptions of this package, and how command-line programs report them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DataUnavailableError(RuntimeError):
    """No source could deliver a dataset or a file of weights; the message gives each reason and the remedy."""


class IntegrityError(RuntimeError):
    """A file is damaged or of another kind (its hash, size or format differs); nothing was loaded from it."""


class StorageError(OSError):
    """A file could not be written (read-only folder, full disk, lock); the message names the path and the remedy."""


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def require(holds: bool, requirement: str) -> None:
    """Raise a ValueError that says what is required, unless it holds."""
    if not holds:
        raise ValueError(requirement)


def a_few(names: Sequence[str]) -> str:
    """List the first five names, and count the rest."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


@contextmanager
def message_instead_of_traceback() -> Iterator[None]:
    """End a program with "error: " and the message of an error that its user can mend, and quietly if interrupted.

    Use it as a decorator of the whole program, parsing of arguments included.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
