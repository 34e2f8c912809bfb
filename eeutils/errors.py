"""The errors of this package that are not a plain ValueError, and how messages list names."""

from collections.abc import Sequence


class DataUnavailableError(RuntimeError):
    """No source could deliver a data set; the message lists each, why it failed, and what to do by hand."""


class IntegrityError(RuntimeError):
    """Bytes are not what they should be (a hash, a size or a format differs); nothing was loaded from them."""


class StorageError(OSError):
    """A file could not be written (read-only folder, full disk); the message names the path and the remedy."""


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def a_few(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
