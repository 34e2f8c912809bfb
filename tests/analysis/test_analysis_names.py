import pkgutil
import subprocess
import sys

import pytest

from eeutils import analysis


def test_analysis_offers_every_name_and_hides_no_module():
    for name in analysis.__all__:
        assert getattr(analysis, name) is not None
    assert not set(analysis.__all__) & {module.name for module in pkgutil.iter_modules(analysis.__path__)}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import eeutils.analysis", {"torch", "numpy", "pandas"}),
        ("from eeutils.analysis import Predictions, predict, decide", {"pandas", "sklearn", "scipy", "captum"}),
    ],
)
def test_analysis_loads_no_more_than_a_name_needs(statement, heavy):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & heavy
