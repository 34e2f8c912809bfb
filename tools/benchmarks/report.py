"""Write reports into results/."""

import os
import platform
from pathlib import Path

import torch

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


def machine(device: torch.device) -> str:
    """Describe the machine in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        name += ", float32 convolutions in TF32"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{device.type} ({name}), {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        "Medians, and in brackets the range over the repeats."
    )
