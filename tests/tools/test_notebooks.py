"""Every notebook runs in quick mode, and as committed it can be read, believed and opened in Colab."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import eeutils
from tools.notebooks import as_text, execute, main, problems, unsupported_numbers

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def colab_link(path: Path) -> str:
    repository = eeutils.__repository__.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"


@pytest.fixture(scope="session")
def quick_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all notebooks and workers, which use the same slim networks; a user's own stays out of it."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quick-cache"


@pytest.mark.timeout(900)
@each_notebook
def test_notebook_runs_in_quick_mode(path, tmp_path, quick_cache):
    copy = Path(shutil.copy(path, tmp_path))
    notebook = execute(copy, quick=True, environment={"EEUTILS_CACHE": str(quick_cache)})
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert not [text for text in problems(notebook) if "stderr" in text]


@each_notebook
def test_notebook_is_committed_as_executed(path):
    assert list(problems(read(path))) == []


@each_notebook
def test_notebook_opens_in_colab_from_itself_and_from_the_readme(path):
    beginning = "".join(cell.source for cell in read(path).cells[:2] if cell.cell_type == "markdown")
    assert re.findall(r"https://colab\.research\.google\.com/github/[^)\s\"]*", beginning) == [colab_link(path)]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"notebooks/{path.name})" in readme
    assert colab_link(path) in readme
    assert code_cells(read(path))[0].source == code_cells(read(NOTEBOOKS[0]))[0].source


def save(folder: Path, *sources: str) -> Path:
    path = folder / "made.ipynb"
    path.write_text(as_text(new_notebook(cells=[new_code_cell(source) for source in sources])), "utf-8")
    return path


def executed(*outputs: NotebookNode, **metadata: object) -> NotebookNode:
    return new_notebook(cells=[new_code_cell("1", execution_count=1, outputs=list(outputs))], metadata=metadata)


def test_execute_runs_in_the_notebooks_folder_and_is_quick_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    path = save(tmp_path, "import os\nprint(os.path.basename(os.getcwd()), os.environ.get('EEUTILS_QUICK'))")
    for quick, seen in ((False, "None"), (True, "1")):
        (output,) = execute(path, quick=quick).cells[0].outputs
        assert output.text == f"{tmp_path.name} {seen}\n"


@pytest.mark.parametrize("source", ["import warnings; warnings.warn('careful')", "1 / 0", "import os; os.getcwd()"])
def test_notebooks_main_leaves_a_notebook_that_complains(source, tmp_path, capsys):
    path = save(tmp_path, source)
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "was left as it was" in capsys.readouterr().err


def test_notebooks_main_writes_a_good_notebook_which_then_stays_the_same(tmp_path):
    """Figures are PNG; bars are dropped, and what pandas numbers at random and objects show of their address."""
    table = "import pandas as pd\npd.DataFrame({'a': [1.0]}).style.format('{:.2f}')"
    figure = "import matplotlib.pyplot as plt\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(2)): plt.plot([1, 2]);"
    path = save(tmp_path, "print('a')\nprint('b')", table, "object()", figure)
    assert main([str(path)]) == 0
    once = path.read_bytes()
    assert main([str(path)]) == 0
    cells = read(path).cells
    told, styled, thing, drawn = (cell.outputs[0] for cell in cells)
    assert told.text == "a\nb\n"
    assert f'<table id="T_{cells[1].id}_0">' in styled.data["text/html"]
    assert thing.data["text/plain"] == "<object>"
    assert "image/png" in drawn.data
    assert len(cells[3].outputs) == 1
    assert path.read_bytes() == once


@pytest.mark.parametrize(
    ("notebook", "complaint"),
    [
        (executed(new_output("stream", name="stderr", text="UserWarning: hm")), "stderr"),
        (executed(new_output("error", ename="ValueError", evalue="no", traceback=[])), "ValueError"),
        (executed(new_output("stream", text=f"saved to {os.sep}home/someone/x.png")), "path"),
        (executed(new_output("execute_result", {"text/html": f"<td>{os.sep}tmp/x</td>"})), "path"),
        (executed(new_output("display_data", {"image/svg+xml": "<svg/>"})), "svg"),
        (executed(new_output("stream", text="x" * 2_000_001)), "bytes"),
        (executed(widgets={}), "widgets"),
        (new_notebook(cells=[new_code_cell("1", execution_count=2)]), "top to bottom"),
    ],
)
def test_problems_name_each_thing_wrong(notebook, complaint):
    (found,) = problems(notebook)
    assert complaint in found


def test_unsupported_numbers_are_those_in_no_output_above():
    shown = [new_output("stream", text=text) for text in ("accuracy 0.886", "accuracy 0.5")]
    first, second = (new_code_cell("1", outputs=[each]) for each in shown)
    notebook = new_notebook(cells=[first, new_markdown_cell("It gets 88.6 %, and 0.5 is cited."), second])
    assert unsupported_numbers(notebook) == ["0.5"]
