"""Training what the registry lacks."""

import shlex
import shutil
import subprocess

import pytest
import torch

from eeutils.models import create_model
from eeutils.weights import Registry, default_registry, load_predictions, load_weights
from tools import publish as publish_module
from tools import train_missing as plan_module
from tools.publish import LARGEST_FILE, LARGEST_FOLDER
from tools.train_missing import PlannedRun, _listed, _obstacle, main, plan, record_plan, train_missing

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


def test_the_registry_has_the_whole_plan_with_its_commands():
    registry = default_registry()

    for planned in plan():
        entry = registry.entry(planned.name)
        if entry.status == "not trained":
            assert entry.command == planned.commands
        elif not planned.wants_gpu:  # in whose place a shorter run may stand
            assert entry.training_arguments == tuple(shlex.split(planned.arguments))
    missing = {entry.name for entry in registry.entries if entry.status == "not trained"}
    assert missing <= {planned.name for planned in plan()}


def test_what_is_planned_is_small_enough_to_ship():
    together = 0
    for planned in plan():
        entry = default_registry().entry(planned.name)
        with torch.device("meta"):
            net = create_model(entry.model, **entry.model_args)
        weights = sum(each.numel() * (2 if each.ndim > 1 else each.itemsize) for each in net.state_dict().values())
        assert planned.results_only or weights <= LARGEST_FILE, planned.name
        predictions = 2 * net.num_exits * 15_000 * 10
        together += predictions + weights * (not planned.results_only)
    assert together <= LARGEST_FOLDER


def test_no_network_is_planned_twice_and_what_starts_from_another_comes_after_it():
    names, starts = set(), set()

    for planned in plan():
        assert planned.name not in names
        assert planned.run.start_from is None or planned.run.start_from in starts
        names.add(planned.name)
        starts |= {str(planned.run.folder)} if planned.results_only else {str(planned.run.folder), planned.name}


def test_what_is_missing_is_trained_published_and_left_alone_the_next_time(folder, capfd):
    assert train_missing((FIRST, SECOND), minutes=5) == []

    assert status(folder) == dict.fromkeys(NAMES, "trained")
    assert Registry.load(folder).entry(NAMES[1]).command == SECOND.command
    assert load_predictions(NAMES[0], "test", registry=Registry.load(folder)).num_exits == 2
    assert "images/s on CPU" in capfd.readouterr().out

    before = (folder / "registry.json").read_text()
    assert train_missing((FIRST, SECOND), minutes=5) == []
    assert capfd.readouterr().out == ""
    assert (folder / "registry.json").read_text() == before


class TooSlow:
    """A training that outlasts every time limit."""

    returncode = -15
    terminated = 0

    def __init__(self, command):
        self.command = command

    def wait(self, timeout=None):
        if timeout is not None:
            raise subprocess.TimeoutExpired(self.command, timeout)

    def terminate(self):
        TooSlow.terminated += 1


def test_what_a_shorter_run_stands_in_for_is_trained_all_the_same(folder, capsys):
    train_missing((FIRST,), minutes=5)
    longer = PlannedRun(TINY.replace("epochs 1", "epochs 2"))
    assert longer.name == FIRST.name
    shutil.rmtree(FIRST.run.folder)  # in a fresh clone there is none

    assert _listed((FIRST, longer), Registry.load(folder)).count("trained otherwise") == 1
    train_missing((longer,), minutes=5)

    entry = Registry.load(folder).entry(longer.name)
    assert (entry.command, entry.training.config["epochs"]) == (longer.command, 2)


def test_of_some_networks_only_the_results_ship(folder):
    results_only = PlannedRun(TINY, results_only=True)
    record_plan((results_only,))
    assert Registry.load(folder).entry(NAMES[0]).command.endswith("-s0 --results-only")

    train_missing((results_only,), minutes=5)

    registry = Registry.load(folder)
    assert status(folder) == {NAMES[0]: "measured"}
    assert not list(folder.rglob("weights.safetensors"))
    assert load_predictions(NAMES[0], "val", registry=registry).num_exits == 2
    with pytest.raises(ValueError, match="do not ship"):
        load_weights(NAMES[0], registry=registry)
    assert train_missing((results_only,), minutes=0) == []


def test_a_run_can_start_from_the_folder_of_another(folder):
    started = PlannedRun(f"{TINY} --train.seed 1 --start-from {FIRST.run.folder}")
    assert "which is not trained" in _obstacle(started, everything=False)

    train_missing((FIRST, started), minutes=5)

    assert status(folder) == dict.fromkeys(NAMES, "trained")


def test_a_run_that_takes_too_long_is_stopped_and_stays_missing(folder, monkeypatch, capsys):
    monkeypatch.setattr(plan_module.subprocess, "Popen", TooSlow)

    assert train_missing((FIRST,), minutes=5) == []

    assert TooSlow.terminated == 1
    assert status(folder) == {NAMES[0]: "not trained"}
    assert "call again to go on" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(folder, monkeypatch):
    started = []

    class Failing:
        returncode = 1

        def __init__(self, command):
            started.append(command[command.index("eeutils.train") + 1 :])

        def wait(self, timeout=None):
            pass

    monkeypatch.setattr(plan_module.subprocess, "Popen", Failing)

    assert train_missing((FIRST, SECOND), minutes=5) == NAMES

    assert [" ".join(arguments) for arguments in started] == [FIRST.arguments, SECOND.arguments]
    assert status(folder) == dict.fromkeys(NAMES, "not trained")


@pytest.mark.parametrize(
    ("planned", "reason"),
    [
        (PlannedRun(TINY, wants_gpu=True), "there is no GPU"),
        (PlannedRun(f"{TINY} --start-from nothing"), "it starts from nothing, which is not trained"),
    ],
)
def test_what_cannot_be_trained_here_is_left_out_with_the_reason(folder, monkeypatch, capsys, planned, reason):
    monkeypatch.setattr(plan_module.subprocess, "Popen", None)

    assert train_missing((planned,), minutes=5) == []

    assert reason in capsys.readouterr().out


def test_an_unknown_name_is_named():
    with pytest.raises(SystemExit, match=r"unknown run 'resnet99'; choose from \['resnet18-avg-cifar10'"):
        main(["--only", "resnet99"])
