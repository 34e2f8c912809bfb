import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from eeutils.training.parallel import Workers, workers_of_torchrun

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}


def torchrun(*words: object) -> subprocess.CompletedProcess:
    """Start two connected processes on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**ALONE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The files that the processes of `together.py` leave."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(Path(__file__).with_name("together.py"), folder)
    assert done.returncode == 0, done.stderr
    return folder


def left_by(folder: Path, rank: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


@pytest.mark.parametrize("name", ["all", "early_exits", "averaged"])
def test_fit_in_processes_ends_with_one_network(together, name):
    before, after = ([left_by(together, rank, each) for rank in range(2)] for each in (f"{name}-before", name))
    assert differing(*before)
    assert not differing(*after)


def test_fit_in_processes_trains_the_trained_part_only(together):
    changed = differing(left_by(together, 0, "early_exits-before"), left_by(together, 0, "early_exits"))
    assert {name.split(".")[0] for name in changed} == {"exits"}
    assert not [name for name in changed if name.startswith("exits.7.")]


def test_fit_in_processes_resumes_exactly_from_the_first_ones_checkpoint(together):
    assert not (together / "stopped-1.pt").exists()
    for rank in range(2):
        assert not differing(left_by(together, rank, "resumed"), left_by(together, 0, "all"))


def test_fit_in_processes_without_norms_and_draws_is_that_of_one(together):
    alone, shared = left_by(together, 0, "alone"), left_by(together, 0, "shared")
    for name in alone:
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-4, atol=1e-5)


def test_train_runs_in_two_processes_and_one_writes(tmp_path):
    words = ["-m", "eeutils.train", "digits", "--model", "resnet18_2exits", "--width", "2", "--data", "digits"]
    done = torchrun(*words, "--train.epochs", "1", "--train.batch-size", "63", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["device"].startswith("2 x CPU")
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m eeutils.train digits ")
    assert done.stdout.count(json.dumps(report["test_accuracy"])) == 1


def test_train_ends_in_all_processes_when_one_fails(tmp_path):
    (tmp_path / "file").write_text("no folder")
    words = ["-m", "eeutils.train", "digits", "--model", "resnet18", "--width", "2", "--data", "digits"]
    done = torchrun(*words, "--out", tmp_path / "file" / "run")
    assert done.returncode != 0
    assert "error: cannot write" in done.stderr


def test_workers_of_one_process_change_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # some clusters set it without torchrun
    numbers = torch.arange(3.0)
    with workers_of_torchrun():
        workers = Workers.of_this_run()
        assert (workers, workers.is_first) == (Workers(0, 1), True)
        workers.average(numbers)
        workers.copy_from_first([numbers])
        assert workers.share_from_first(7) == 7
        assert not workers.any(False)
    assert not dist.is_initialized()
    assert numbers.tolist() == [0, 1, 2]
