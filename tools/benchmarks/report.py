"""Write reports into results/."""

from pathlib import Path

from eeutils.files import write_text
from tools.pages import RESULTS, refresh_pages


def report_path(name: str, device: str) -> Path:
    """Default path of the report `name`: in results/, with a suffix for a GPU."""
    return RESULTS / (f"{name}-cuda.md" if device.startswith("cuda") else f"{name}.md")


def publish(report: str, path: Path) -> None:
    """Print a report, write it to `path`, and refresh the pages that show it.

    Raises:
        StorageError: if it cannot be written.
    """
    print(report)  # first: if it cannot be written, the measurement was not for nothing
    write_text(path, report)
    if path.resolve().parent == RESULTS:
        refresh_pages()
