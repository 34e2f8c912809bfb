"""Every notebook runs in quick mode, and as committed it can be read, believed and opened in Colab."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import eeutils
from tools.notebooks import as_text, execute, main, problems, unsupported_numbers

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 12  # lines, but for the first one, which is folded

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def colab_link(path: Path) -> str:
    repository = eeutils.__repository__.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"


def test_the_suite_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_data_exploration",
        "02_train_2_exits",
        "03_train_3_exits",
        "04_test_2_exits",
        "05_test_3_exits",
        "06_pooling_comparison",
        "07_plots",
        "08_shallow_deep_networks",
        "09_overthinking",
        "10_early_exits",
        "11_exit_policies",
        "12_confusion",
        "13_gradcam",
        "14_your_photos",
    ]


@pytest.fixture(scope="session")
def quick_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all notebooks, which use the same slim networks; a user's own stays out of it."""
    return tmp_path_factory.mktemp("quick-cache")


@pytest.mark.timeout(900)
@each_notebook
def test_runs_in_quick_mode(path, tmp_path, quick_cache):
    copy = Path(shutil.copy(path, tmp_path))

    notebook = execute(copy, quick=True, environment={"EEUTILS_CACHE": str(quick_cache)})

    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )  # every cell ran
    stderr = [text for text in problems(notebook) if "stderr" in text]
    assert not stderr


@each_notebook
def test_is_committed_as_executed(path):
    assert list(problems(read(path))) == []


@each_notebook
def test_shows_figures(path):
    kinds = [kind for cell in code_cells(read(path)) for output in cell.outputs for kind in output.get("data", {})]

    assert "image/png" in kinds


@each_notebook
def test_begins_with_its_title_and_a_badge_that_opens_it_in_colab(path):
    notebook = read(path)
    first = notebook.cells[0]

    assert first.cell_type == "markdown"
    assert re.search(r"^# \S", first.source, re.MULTILINE)
    beginning = "".join(cell.source for cell in notebook.cells[:2] if cell.cell_type == "markdown")
    assert re.findall(r"https://colab\.research\.google\.com/github/[^)\s\"]*", beginning) == [colab_link(path)]


@each_notebook
def test_begins_with_the_same_code(path):
    assert code_cells(read(path))[0].source == code_cells(read(NOTEBOOKS[0]))[0].source


@each_notebook
def test_has_short_cells(path):
    too_long = [
        cell.source.splitlines()[0]
        for cell in code_cells(read(path))[1:]
        if len(cell.source.splitlines()) > LONGEST_CELL
    ]

    assert not too_long


@each_notebook
def test_names_no_path_of_a_machine(path):
    text = "\n".join(cell.source for cell in read(path).cells)

    assert not re.search(r"(?<![\w./:-])/(?:home|root|tmp|work|Users)/", text)


@each_notebook
def test_is_linked_in_the_readme(path):
    readme = (ROOT / "README.md").read_text("utf-8")

    assert f"notebooks/{path.name})" in readme
    assert colab_link(path) in readme


def test_the_readme_links_no_notebook_that_is_not_there():
    readme = (ROOT / "README.md").read_text("utf-8")

    linked = set(re.findall(r"notebooks/(\w+\.ipynb)", readme))
    assert linked == {path.name for path in NOTEBOOKS}


# The runner itself, on notebooks made here.


def save(folder: Path, *sources: str) -> Path:
    path = folder / "made.ipynb"
    path.write_text(as_text(new_notebook(cells=[new_code_cell(source) for source in sources])), "utf-8")
    return path


def executed(*outputs: NotebookNode, **metadata: object) -> NotebookNode:
    return new_notebook(cells=[new_code_cell("1", execution_count=1, outputs=list(outputs))], metadata=metadata)


def test_a_notebook_runs_in_its_own_folder_and_sees_quick_mode_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    path = save(tmp_path, "import os\nprint(os.path.basename(os.getcwd()), os.environ.get('EEUTILS_QUICK'))")

    for quick, seen in ((False, "None"), (True, "1")):
        (output,) = execute(path, quick=quick).cells[0].outputs
        assert output.text == f"{tmp_path.name} {seen}\n"


def test_an_executed_notebook_keeps_figures_as_png_and_drops_bars_and_times(tmp_path):
    path = save(
        tmp_path,
        "import matplotlib.pyplot as plt\nfrom tqdm.auto import tqdm",
        "for _ in tqdm(range(2)): pass",
        "plt.plot([1, 2]);",
    )

    notebook = execute(path, quick=False)

    assert notebook.cells[1].outputs == []
    assert "image/png" in notebook.cells[2].outputs[0].data
    assert not list(problems(notebook))
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("source", ["import warnings; warnings.warn('careful')", "1 / 0", "import os; os.getcwd()"])
def test_a_notebook_that_complains_is_not_written(source, tmp_path, capsys):
    path = save(tmp_path, source)
    before = path.read_bytes()

    assert main([str(path)]) == 1

    assert path.read_bytes() == before
    assert "was left as it was" in capsys.readouterr().err


def test_a_good_notebook_is_written_and_then_stays_the_same(tmp_path):
    """Styled tables, too, which pandas numbers at random, and objects, which lie anywhere in memory."""
    table = "import pandas as pd\npd.DataFrame({'a': [1.0]}).style.format('{:.2f}')"
    path = save(tmp_path, "print('a')\nprint('b')", table, "object()")

    assert main([str(path)]) == 0
    once = path.read_bytes()
    assert main([str(path)]) == 0

    cells = read(path).cells
    told, styled, thing = (cell.outputs[0] for cell in cells)
    assert told.text == "a\nb\n"
    assert f'<table id="T_{cells[1].id}_0">' in styled.data["text/html"]
    assert thing.data["text/plain"] == "<object>"
    assert path.read_bytes() == once


def test_an_error_says_which_cell(tmp_path):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(save(tmp_path, "1 / 0"), quick=True)


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
def test_each_thing_wrong_is_named(notebook, complaint):
    (found,) = problems(notebook)

    assert complaint in found


def test_nothing_is_wrong_with_a_clean_notebook():
    clean = executed(
        new_output("stream", text=f"1/2 of it, see https://example.org{os.sep}home/x"),
        new_output("display_data", {"image/png": f"{os.sep}tmp/x", "text/plain": "<Figure size 640x480>"}),
    )
    clean.cells.insert(0, new_markdown_cell("# Title"))

    assert list(problems(clean)) == []


def test_unsupported_numbers_are_those_in_no_output_above():
    first, second = (
        new_code_cell("1", outputs=[new_output("stream", text=text)]) for text in ("accuracy 0.886", "accuracy 0.5")
    )
    notebook = new_notebook(cells=[first, new_markdown_cell("It gets 88.6 %, and 0.5 is cited."), second])

    assert unsupported_numbers(notebook) == ["0.5"]


@each_notebook
def test_prose_has_no_template(path):
    assert not [cell for cell in read(path).cells if "template" in cell.metadata]
