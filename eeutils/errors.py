"""The errors of this package that are no plain ValueError, how messages list names, how programs begin and end."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DataUnavailableError(RuntimeError):
    """No source could deliver a data set or a file of weights; the message says why each failed, and what to do."""


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


@contextmanager
def message_instead_of_traceback() -> Iterator[None]:
    """Ends a program whose user can do something about it with "error: " and what; an interrupted one says nothing.

    It decorates the function that is the program, reading of the command line included: of a wrong value only the
    latest versions of tyro make a message of their own.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def refuse_arguments(program: str, description: str, args: Sequence[str]) -> None:
    """Read the command line of a program that takes none, but for `--help`.

    Args:
        program: its module, such as "tools.demo".
        description: what `--help` says.
        args: what comes after its name.

    Raises:
        SystemExit: after `--help`; and after a message, with 2, if there is anything else.
    """
    parser = argparse.ArgumentParser(f"python -m {program}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the lines
    parser.parse_args(args)
