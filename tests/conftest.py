"""What every test starts from."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen; before anyone imports matplotlib
os.environ.pop("EEUTILS_QUICK", None)

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from eeutils.data import ImageData, load_data
from eeutils.errors import DataUnavailableError, StorageError

Forward = Callable[[Tensor], list[Tensor]]

settings.register_profile("eeutils", deadline=None)  # nothing here is about time
settings.load_profile("eeutils")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """Where nobody says which device, also if there is a GPU: bit for bit is promised here alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eeutils.training.device.default_device", lambda: torch.device("cpu"))
        yield


@pytest.fixture
def compiled() -> Callable[[Forward], tuple[Forward, list[torch.fx.GraphModule]]]:
    """Gives a forward pass as torch.compile takes it, and the list of the graphs that this came to."""

    def compile_and_list(forward: Forward) -> tuple[Forward, list[torch.fx.GraphModule]]:
        graphs = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Forward:
            graphs.append(graph)
            return graph.forward

        torch.compiler.reset()  # what other tests compiled counts against a limit
        return torch.compile(forward, backend=backend), graphs

    return compile_and_list


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
