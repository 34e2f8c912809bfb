import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from eeutils import train as cli
from eeutils.training.parallel import Workers, workers_of_torchrun

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}


def torchrun(*words: object) -> subprocess.CompletedProcess:
    """Start two processes that know of each other, on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**ALONE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What the processes of `together.py` left behind."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(Path(__file__).with_name("together.py"), folder)
    assert done.returncode == 0, done.stderr
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


def test_interrupted_all_go_on_from_what_one_of_them_saved_as_if_nothing_had_happened(together):
    for rank in range(2):
        assert not differing(left_by(together, rank, "resumed"), left_by(together, 0, "all"))


def test_who_cannot_see_the_checkpoint_of_the_others_stops_all(together):
    for rank in range(2):
        assert "is not the same for all processes" in (together / f"apart-{rank}.txt").read_text()


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
    done = torchrun(*words, "--train.epochs", "2", "--train.batch-size", "63", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"] == "2 x CPU, 1 thread(s)"
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m eeutils.train digits ")
    assert done.stdout.count("on test; see") == 1
    assert f"{json.dumps(report['test_accuracy'])} on test" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "history.csv",
        "report.json",
        "weights.safetensors",
    }


def test_when_one_process_fails_all_end_and_its_message_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    words = ["-m", "eeutils.train", "digits", "--model", "resnet18", "--width", "2", "--data", "digits"]
    done = torchrun(*words, "--out", tmp_path / "file" / "run")
    assert done.returncode != 0
    assert "error: cannot write" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "machines", "message"),
    [(1, 1, "2 processes want a GPU each, and there are 1"), (2, 2, "on more than one machine has never been tried")],
)
def test_processes_that_cannot_work_together_are_told(monkeypatch, gpus, machines, message):
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {"WORLD_SIZE": 2 * machines, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=message), workers_of_torchrun():
        pass


def test_processes_cannot_all_be_given_one_gpu(monkeypatch):
    monkeypatch.setattr(Workers, "of_this_run", lambda: Workers(1, 2))
    monkeypatch.setattr("eeutils.train.choose_device", lambda name: torch.device(name))
    with pytest.raises(SystemExit, match="2 processes cannot all have cuda:1; leave out its number"):
        cli.main(["digits", "--data", "digits", "--device", "cuda:1"])


def test_a_process_of_its_own_is_alone_and_changes_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some clusters have it, torchrun or not
    numbers = torch.arange(3.0)
    with workers_of_torchrun():
        workers = Workers.of_this_run()
        assert (workers, workers.writes) == (Workers(0, 1), True)
        workers.average([numbers])
        workers.follow_first([numbers])
        assert workers.gather(7) == [7]
    assert not dist.is_initialized()
    assert numbers.tolist() == [0, 1, 2]
