"""The errors of this package that are not a plain ValueError."""


class DataUnavailableError(RuntimeError):
    """No source could deliver a data set; the message lists each, why it failed, and what to do by hand."""


class IntegrityError(RuntimeError):
    """Bytes are not what they should be (a hash, a size or a format differs); nothing was loaded from them."""


class StorageError(OSError):
    """A file could not be written (read-only folder, full disk); the message names the path and the remedy."""


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""
