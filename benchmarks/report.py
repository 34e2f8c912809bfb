"""Where reports go."""

from pathlib import Path

from eeutils.files import write_text
from eeutils.results import RESULTS, refresh_readme


def report_path(name: str, device: str) -> Path:
    """Where the report `name` goes by default: into results/, a GPU's apart."""
    return RESULTS / (f"{name}-cuda.md" if device.startswith("cuda") else f"{name}.md")


def publish(report: str, path: Path) -> None:
    """Print a report and write it to `path`; README.md shows what lies in results/, so it is then put there anew.

    Raises:
        StorageError: if it cannot be written.
    """
    print(report)  # first: if it cannot be written, the measurement was not for nothing
    write_text(path, report)
    if path.resolve().parent == RESULTS:
        refresh_readme()
