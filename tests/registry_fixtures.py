"""A registry with one small untrained network, and a finished run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eeutils import MultiExitNet, create_model, recipe
from eeutils.files import sha256_of_file
from eeutils.train import TrainingRun, train
from eeutils.weights import Registry, StoredFile
from tests.toys import toy_entry
from tools.publish import halved
from tools.registry_file import save_registry, with_entry

TINY_ARGS = {"num_classes": 3, "width": 4, "pool": "spp", "exit_after": [2, 4]}


@pytest.fixture
def cache(empty_cache) -> Path:
    return empty_cache / "weights"


@pytest.fixture
def tiny_net() -> MultiExitNet:
    torch.manual_seed(0)
    return create_model("resnet18_3exits", **TINY_ARGS).eval()


@pytest.fixture
def tiny_registry(tmp_path, tiny_net) -> Registry:
    """`resnet18_3exits-spp-toy-w4` ships; the same at width 64 is not trained."""
    folder = tmp_path / "weights"
    file = folder / "tiny" / "weights.safetensors"
    file.parent.mkdir(parents=True)
    save_file(halved(tiny_net.state_dict()), file)
    weights = StoredFile("tiny/weights.safetensors", sha256_of_file(file), file.stat().st_size)
    made_of = {"model": "resnet18_3exits", "model_args": TINY_ARGS}
    slim = toy_entry("resnet18_3exits-spp-toy-w4", **made_of, weights=weights)
    missing = {"status": "not trained", "weights": None, "command": "train --width 64 && publish"}
    full = toy_entry("resnet18_3exits-spp-toy", **made_of, **missing)
    registry = with_entry(with_entry(Registry((), folder), slim), full)
    save_registry(registry)
    return registry


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Every request goes to a proxy that is not there."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """One epoch of a small network on the digits, with the files that training leaves."""
    config, out = replace(recipe("digits"), epochs=1, seed=3), tmp_path_factory.mktemp("runs") / "run"
    run = TrainingRun("resnet18_2exits", pool="spp", width=4, data="digits", out=out, device="cpu", train=config)
    train(run)
    return run.folder


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(finished_run, tmp_path / "run")
