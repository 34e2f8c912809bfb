"""What `eeutils.analysis` offers by name."""

import pkgutil
import subprocess
import sys

import pytest

from eeutils import analysis


@pytest.mark.parametrize("name", analysis.__all__)
def test_every_name_is_there(name):
    value = getattr(analysis, name)
    assert getattr(value, "__name__", name) == name
    assert getattr(value, "__module__", "eeutils.analysis").startswith("eeutils.analysis")


def test_the_names_are_sorted_and_shown():
    assert analysis.__all__ == sorted(set(analysis.__all__))
    assert set(analysis.__all__) <= set(dir(analysis))


def test_no_name_hides_a_module():
    """`from eeutils.analysis import confusion` is the module, and stays it."""
    modules = {module.name for module in pkgutil.iter_modules(analysis.__path__)}
    assert "confusion" in modules
    assert not set(analysis.__all__) & modules


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        analysis.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import eeutils.analysis", {"torch", "numpy", "pandas"}),
        ("from eeutils.analysis import Predictions, predict, decide", {"pandas", "sklearn", "scipy", "captum"}),
    ],
)
def test_a_name_loads_no_more_than_its_module(statement, heavy):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & heavy
