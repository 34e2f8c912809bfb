"""Run notebooks and keep their outputs: `python -m tools.notebooks` for all, or name some.

Each runs top to bottom in a fresh kernel and is written only if all went well: no error, nothing on stderr (which is
where warnings go), no absolute path of this machine, not too large. Prose stays as its author wrote it; the program
lists its percentages and decimals that no output above them shows: cited numbers, and those that a new run has changed.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from eeutils.files import write_text
from tools.numbers import shown_numbers, unsupported

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS_A_CELL = 600
LARGEST_FILE = 2_000_000  # bytes; above that GitHub does not show a notebook well
_WIDGET = "application/vnd.jupyter.widget-view+json"
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# pandas draws a number for every styled table, and an object's repr says where it lies in memory.
_TABLE_ID, _ADDRESS = re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-z])"), re.compile(r" at 0x[0-9a-f]+")
_KEPT_METADATA = ("tags", "cellView")
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|var|Users|content)/[\w.-]+")


def main(names: list[str]) -> int:
    """Run the named notebooks, or all; return how many failed."""
    shutil.rmtree(FOLDER / "runs", ignore_errors=True)  # else notebooks would find their own training finished
    failed = 0
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.perf_counter()
        try:
            notebook = execute(path, quick=False)
            if complaints := list(problems(notebook)):
                raise ValueError("\n  ".join(["it ran, but:", *complaints]))
            write_text(path, as_text(notebook))
            print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)
            if missing := unsupported_numbers(notebook):
                print(f"  in prose, in no output above: {', '.join(missing)}", flush=True)
        except (CellExecutionError, ValueError, OSError, RuntimeError) as error:
            failed += 1
            print(f"{path.name} was left as it was: {error}", file=sys.stderr, flush=True)
    return failed


def execute(path: Path, *, quick: bool, environment: Mapping[str, str] | None = None) -> NotebookNode:
    """Run a notebook top to bottom in a fresh kernel, in the folder it lies in. The file is not touched.

    Args:
        path: the notebook.
        quick: on digits with slim networks (EEUTILS_QUICK=1), in seconds.
        environment: further variables for the kernel.

    Returns:
        The notebook with its outputs, without what depends on the run or the machine (times, widgets' states).

    Raises:
        CellExecutionError: if a cell raises.
        CellTimeoutError: if a cell takes more than 10 minutes.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    with client.setup_kernel(env=_kernel_environment(quick, environment or {})):
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, index)
    return _tidy(notebook)


def unsupported_numbers(notebook: NotebookNode) -> list[str]:
    """Percentages and decimals in prose that no output above them shows, in reading order."""
    shown: set[float] = set()
    missing = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown |= {number for output in cell.outputs for text in _texts(output) for number in shown_numbers(text)}
        else:
            missing += unsupported(cell.source, shown)
    return missing


def _texts(output: NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    return [str(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")]


def problems(notebook: NotebookNode) -> Iterator[str]:
    """Faults of an executed notebook, a sentence each; none if it can be published."""
    if "widgets" in notebook.metadata:
        yield "it holds the state of widgets, which GitHub cannot show"
    if (size := len(as_text(notebook).encode())) > LARGEST_FILE:
        yield f"it has {size:,} bytes, more than {LARGEST_FILE:,}"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its cells were not run once each, from top to bottom"
    for number, cell in enumerate(cells, 1):
        for output in cell.outputs:
            yield from (f"cell {number} {complaint}" for complaint in _output_problems(output))


def as_text(notebook: NotebookNode) -> str:
    """Serialise the notebook as its file's text."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _output_problems(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "error":
        yield f"raised {output.ename}: {output.evalue}"
        return
    if output.output_type == "stream":
        if output.name == "stderr":
            yield f"wrote to stderr: {output.text.strip()[:500]}"
    else:
        for kind in output.data:
            if kind.startswith("image/") and kind != "image/png":
                yield f"has a figure as {kind}; use PNG"
    for found in filter(None, map(_ABSOLUTE_PATH.search, _texts(output))):
        yield f"shows a path of this machine: {found.group()}"


def _kernel_environment(quick: bool, further: Mapping[str, str]) -> dict[str, str]:
    # The kernel chooses its own backend for figures, and a reader's quick mode must not end up in a committed notebook.
    inherited = {name: value for name, value in os.environ.items() if name not in ("EEUTILS_QUICK", "MPLBACKEND")}
    return inherited | ({"EEUTILS_QUICK": "1"} if quick else {}) | dict(further)


def _tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop progress bars and whatever differs from run to run."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {name: cell.metadata[name] for name in _KEPT_METADATA if name in cell.metadata}
        )
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
            for number, output in enumerate(cell.outputs):
                _drop_chance(output, f"T_{cell.id}_{number}")
    return notebook


def _drop_chance(output: NotebookNode, table_id: str) -> None:
    """Remove random table ids and memory addresses."""
    for kind, text in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = _ADDRESS.sub("", _TABLE_ID.sub(table_id, text))


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
