"""What every test starts from."""

import os
import random
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen; before anyone imports matplotlib
os.environ.pop("EEUTILS_QUICK", None)

import numpy as np
import pytest
import torch
from hypothesis import settings

from eeutils.data import ImageData, load_data
from eeutils.errors import DataUnavailableError, StorageError

settings.register_profile("eeutils", deadline=None)  # nothing here is about time
settings.load_profile("eeutils")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EEUTILS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def cifar10() -> ImageData:
    """The real CIFAR-10, from the user's cache or fetched into it."""
    try:
        return load_data("cifar10")
    except (DataUnavailableError, StorageError) as error:
        pytest.skip(f"CIFAR-10 cannot be had here: {error}")
