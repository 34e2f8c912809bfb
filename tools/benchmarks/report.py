"""Where reports go."""

from pathlib import Path

from eeutils.files import write_text
from tools.pages import RESULTS, refresh_pages


def report_path(name: str, device: str) -> Path:
    """Where the report `name` goes by default: into results/, a GPU's apart."""
    return RESULTS / (f"{name}-cuda.md" if device.startswith("cuda") else f"{name}.md")


def publish(report: str, path: Path) -> None:
    """Print a report and write it to `path`; the pages that show what lies in results/ are then refreshed.

    Raises:
        StorageError: if it cannot be written.
    """
    print(report)  # first: if it cannot be written, the measurement was not for nothing
    write_text(path, report)
    if path.resolve().parent == RESULTS:
        refresh_pages()
