"""Command lines of programs without arguments."""

import argparse
from collections.abc import Sequence


def refuse_arguments(program: str, description: str, args: Sequence[str]) -> None:
    """Parse the command line of a program without arguments, which offers `--help` alone.

    Args:
        program: name of its module, such as "tools.demo".
        description: text of `--help`.
        args: the command line after the program's name.

    Raises:
        SystemExit: after `--help`, or with 2 if there is any other argument.
    """
    parser = argparse.ArgumentParser(f"python -m {program}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the lines
    parser.parse_args(args)
