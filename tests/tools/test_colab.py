import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest

from tools import colab

ROOT = Path(__file__).parents[2]
FIRST_CELL = next(
    cell.source
    for cell in nbformat.read(ROOT / "notebooks/01_data_exploration.ipynb", 4).cells
    if cell.cell_type == "code"
)


def test_colab_missing_names_what_is_absent_or_too_old_and_keeps_torch():
    wanted = ["torch>=99", "numpy>=99", "pandas>=1.0", "pandas>=99.0", "no-such-package>=1"]
    assert colab.missing(wanted) == ["pandas>=99.0", "no-such-package>=1"]


@pytest.mark.parametrize("replaced", [False, True])
def test_colab_main_says_if_pip_replaced_torch_against_the_constraint(monkeypatch, replaced):
    versions, constraints = {"torch": "2.6.0", "numpy": "2.1.0"}, []

    def pip(command: list[str], check: bool) -> None:
        if "--constraint" in command:
            constraints.extend(Path(command[command.index("--constraint") + 1]).read_text().split())
            versions["torch"] = "2.5.0" if replaced else versions["torch"]

    monkeypatch.setattr(colab, "_installed", versions.get)
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(SystemExit, match=r"torch==2\.5\.0") if replaced else nullcontext():
        colab.main()
    assert constraints == ["torch==2.6.0", "numpy==2.1.0"]


def test_colab_first_cell_fetches_a_small_part_of_the_repository(tmp_path, monkeypatch):
    """Its own git commands, on a local clone that serves partial clones, fetch under 20 MB."""
    served = tmp_path / "served"
    git(tmp_path, "clone", "--quiet", "--bare", "--shared", str(ROOT), str(served))
    git(served, "config", "uploadpack.allowFilter", "true")
    monkeypatch.chdir(tmp_path)
    commands = [line.strip().strip('",') for line in FIRST_CELL.splitlines() if line.strip().startswith('"git ')]
    assert len(commands) == 2
    for command in commands:
        words = [f"file://{served}" if word.startswith("https://") else word for word in command.split()]
        subprocess.run(words, check=True, cwd=tmp_path)
    clone = tmp_path / "early-exits"
    fetched = sum(path.stat().st_size for path in clone.rglob("*") if path.is_file())
    assert fetched < 20e6
    assert not list(clone.rglob("weights.safetensors"))
    code = "import eeutils.weights as w; print(len(w.list_weights()))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=True)
    assert int(shown.stdout) > 10


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
