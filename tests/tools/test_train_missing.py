import shlex
import subprocess
from unittest.mock import Mock

import pytest

from eeutils import load_predictions, train
from eeutils.weights import Registry, default_registry
from tools import publish as publish_module
from tools import train_missing as plan_module
from tools.train_missing import PlannedRun, _obstacle, plan, train_missing

TINY = "digits --model resnet18_2exits --pool spp --width 2 --data digits --train.epochs 1 --device cpu"
FIRST, SECOND = PlannedRun(TINY), PlannedRun(f"{TINY} --train.seed 1")
NAMES = ["resnet18_2exits-spp-digits-w2", "resnet18_2exits-spp-digits-w2-s1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty weights folder in place of the repository's, and runs beside it."""
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in (plan_module, publish_module):
        monkeypatch.setattr(module, "default_registry", lambda: Registry.load(tmp_path / "weights"))
    return tmp_path / "weights"


def status(folder) -> dict[str, str]:
    return {entry.name: entry.status for entry in Registry.load(folder).entries}


def test_plan_is_in_the_registry_with_its_commands():
    registry = default_registry()
    for planned in plan():
        entry = registry.entry(planned.name)
        if entry.status == "not trained":
            assert entry.command == planned.commands
        elif not planned.wants_gpu:  # in whose place a shorter run may stand
            assert entry.training_arguments == tuple(shlex.split(planned.arguments))
    missing = {entry.name for entry in registry.entries if entry.status == "not trained"}
    assert missing <= {planned.name for planned in plan()}


def test_train_missing_trains_publishes_and_does_nothing_the_next_time(folder, capfd):
    assert train_missing((FIRST,), minutes=5) == []
    assert status(folder) == {NAMES[0]: "trained"}
    assert Registry.load(folder).entry(NAMES[0]).command == FIRST.command
    assert load_predictions(NAMES[0], "test", registry=Registry.load(folder)).num_exits == 2
    assert "images/s on CPU" in capfd.readouterr().out
    before = (folder / "registry.json").read_text()
    assert train_missing((FIRST,), minutes=5) == []
    assert capfd.readouterr().out == ""
    assert (folder / "registry.json").read_text() == before


def test_train_missing_starts_from_the_folder_of_another_run(folder, monkeypatch):
    def in_this_process(command: list[str]) -> Mock:
        train.main(command[command.index("eeutils.train") + 1 :])
        return Mock(returncode=0)

    monkeypatch.setattr(plan_module.subprocess, "Popen", in_this_process)
    started = PlannedRun(f"{TINY} --train.seed 1 --start-from {FIRST.run.folder}")
    assert "which is not trained" in _obstacle(started, everything=False)
    train_missing((FIRST, started), minutes=5)
    assert status(folder) == dict.fromkeys(NAMES, "trained")


def test_train_missing_stops_a_run_that_takes_too_long(folder, monkeypatch, capsys):
    slow = Mock(returncode=-15)
    slow.wait.side_effect = [subprocess.TimeoutExpired("train", 300), None]
    monkeypatch.setattr(plan_module.subprocess, "Popen", Mock(return_value=slow))
    assert train_missing((FIRST,), minutes=5) == []
    slow.terminate.assert_called_once()
    assert status(folder) == {NAMES[0]: "not trained"}
    assert "call again to go on" in capsys.readouterr().out


@pytest.mark.parametrize("planned", [PlannedRun(TINY, wants_gpu=True), PlannedRun(f"{TINY} --start-from nothing")])
def test_train_missing_leaves_out_what_cannot_be_trained_here(folder, monkeypatch, capsys, planned):
    monkeypatch.setattr(plan_module.subprocess, "Popen", None)
    assert train_missing((planned,), minutes=5) == []
    assert "left out" in capsys.readouterr().out
