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


def torchrun(*words: object, processes: int = 2) -> str:
    """Start something in processes that know of each other, on the CPU; returns what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**ALONE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, timeout=240, env=environment, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What the processes of `together.py` left behind."""
    folder = tmp_path_factory.mktemp("together")
    torchrun(Path(__file__).with_name("together.py"), folder)
    return folder


def left_by(folder: Path, rank: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_means_and_the_firsts_numbers_are_everybodys(together):
    for rank in range(2):
        assert json.loads((together / f"sums-{rank}.json").read_text()) == {
            "mean": [[0.5, 1.5], [2.5]],
            "first": [[0.0, 1.0], [2.0]],
            "channels last": True,
        }


@pytest.mark.parametrize("name", ["all", "early_exits", "averaged"])
def test_all_end_with_the_same_network_though_each_began_with_its_own(together, name):
    before, after = ([left_by(together, rank, each) for rank in range(2)] for each in (f"{name}-before", name))
    assert differing(*before)
    assert not differing(*after)


def test_all_go_on_from_what_one_of_them_saved(together):
    for rank in range(2):
        assert not differing(left_by(together, rank, "resumed"), left_by(together, 0, "all"))


def test_without_norms_and_draws_it_is_the_run_of_one_process(together):
    alone, shared = left_by(together, 0, "alone"), left_by(together, 0, "plain")
    for name in alone:
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-4, atol=1e-5)
    losses = json.loads((together / "losses.json").read_text())
    assert losses["plain"] == pytest.approx(losses["alone"], rel=1e-4)


def test_what_is_not_trained_stays_bit_for_bit(together):
    changed = differing(left_by(together, 0, "early_exits-before"), left_by(together, 0, "early_exits"))
    assert {name.split(".")[0] for name in changed} == {"exits"}
    assert not [name for name in changed if name.startswith("exits.7.")]


def test_a_shell_trains_with_torchrun_and_one_process_writes(tmp_path):
    words = ["-m", "eeutils.train", "digits", "--model", "resnet18_2exits", "--width", "2", "--data", "digits"]
    printed = torchrun(*words, "--train.epochs", "2", "--train.batch-size", "63", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"] == "2 x CPU, 1 thread(s)"
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m eeutils.train digits ")
    assert printed.count("on test; see") == 1
    assert f"{json.dumps(report['test_accuracy'])} on test" in printed
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "history.csv",
        "report.json",
        "weights.safetensors",
    }


def test_a_process_of_its_own_is_alone_and_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    numbers = torch.arange(3.0)
    with workers_of_torchrun():
        workers = Workers.of_this_run()
        assert (workers, workers.writes) == (Workers(0, 1), True)
        workers.average([numbers])
        workers.follow_first([numbers])
        workers.wait_for_all()
    assert not dist.is_initialized()
    assert numbers.tolist() == [0, 1, 2]
