import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eeutils import MultiExitNet, create_model, list_data, list_models, list_recipes, load_data, predict, recipe
from eeutils import train as cli
from eeutils.data import Trigger, stamped
from eeutils.training import loop
from eeutils.training.checkpoint import load_checkpoint
from tests.toys import at_step, interrupt

TINY = ["digits", "--model", "resnet18_2exits", "--pool", "spp", "--width", "2", "--stem", "imagenet"]


def error_of(capsys, *args: str) -> str:
    """The message that `args` end with."""
    with pytest.raises(SystemExit) as exit:
        cli.main(list(args))
    assert exit.value.code not in (0, None)
    return str(exit.value.code) + "".join(capsys.readouterr())


def test_train_main_writes_files_and_reads_those_of_a_finished_run(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    args = [*TINY, "--train.epochs", "1", "--out", str(folder)]
    cli.main(args)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    written = {name for name, content in files.items() if content}
    assert written == {"checkpoint.pt", "history.csv", "report.json", "weights.safetensors"}
    report = json.loads((folder / "report.json").read_text())
    net = create_model("resnet18_2exits", pool="spp", width=2, stem="imagenet")
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    test = predict(net, load_data("digits").test)
    assert report["test_accuracy"] == pytest.approx(test.accuracy.tolist(), abs=1e-4)
    assert report["macs"] == test.costs.tolist()
    assert report["share_of_peak"] is not None
    assert str(report["test_accuracy"]) in capsys.readouterr().out
    assert len((folder / "history.csv").read_text().splitlines()) == 2
    monkeypatch.setattr("eeutils.data.TrainBatches.epoch", None)  # nothing is trained again
    monkeypatch.setattr(cli, "device_name", lambda device: "another machine")
    cli.main(args)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert str(report["test_accuracy"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "model", "data"),
    [
        ("ic_only_tinyimagenet", "resnet18_3exits", "tinyimagenet"),
        ("sdn_vgg16_tinyimagenet --data cifar100", "vgg16_sdn", "cifar100"),
    ],
)
def test_parsed_takes_network_and_data_from_the_recipes_name(args, model, data):
    run = cli.parsed(args.split())
    assert (run.model, run.data, run.train) == (model, data, recipe(args.split()[0]))
    runs = [cli.parsed([name]) for name in list_recipes()]
    assert {run.model for run in runs} <= set(list_models())
    assert {run.data for run in runs} <= set(list_data())


@pytest.mark.parametrize("args", [["ic_only"], ["digits", "--train.trained", "exits"]])
def test_train_needs_a_trained_backbone_for_exits(capsys, monkeypatch, tmp_path, args):
    monkeypatch.setattr(cli, "load_data", None)
    assert "start_from" in error_of(capsys, *args, "--data", "digits", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--data", "cifar11"], "'cifar11'"),
        (["--device", "tpu9"], "'tpu9'"),
        (["--train.learning-rate", "-1"], "learning_rate must be positive, got -1.0"),
        (["--start-from", "runs/none"], "'runs/none'"),
        (["--out", __file__], "cannot write"),
    ],
)
def test_train_main_names_a_wrong_value(capsys, tmp_path, args, named):
    shown = error_of(capsys, *TINY, *(() if "--out" in args else ("--out", str(tmp_path))), *args)
    assert named in " ".join(shown.replace("│", " ").split())  # long lines are broken in a frame
    assert "Traceback" not in shown


def test_train_main_ends_with_an_exit_code_and_a_line(tmp_path):
    command = [sys.executable, "-m", "eeutils.train", *TINY, "--model", "resnet19"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "'resnet19'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_train_measures_a_backdoor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--trigger.target", "3", "--trigger.size", "6", "--train.epochs", "1"]
    cli.main([*args, "--poison-share", "0.2"])
    folder = tmp_path / "runs" / "resnet18_2exits-spp-digits-trigger3-imagenetstem-w2-s0"
    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["poison_share"] == 0.2
    assert report["run"]["trigger"] == {"target": 3, "size": 6, "margin": 1, "value": 255}
    net = create_model("resnet18_2exits", pool="spp", width=2, stem="imagenet")
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    test = load_data("digits").test
    marked = predict(net, stamped(test.take(test.labels != 3), Trigger(3, size=6)))
    expected = (marked.predicted == 3).double().mean(1)
    assert report["attack_success"] == pytest.approx(expected.tolist(), abs=1e-4)
    other = cli.parsed([*args, "--poison-share", "0.3"])
    with pytest.raises(ValueError, match="other data"):
        cli.train(other)


def trained_from(donor: MultiExitNet, monkeypatch, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    """Return what a run of `donor`'s backbone with two exits ends with."""
    monkeypatch.setattr(cli, "load_weights", lambda name: donor)
    start = f"digits --model resnet18_2exits --width 4 --start-from donor --train.epochs 1 --out {folder}"
    cli.main([*start.split(), *words])
    return load_file(folder / "weights.safetensors")


def test_train_widens_a_narrower_network(monkeypatch, tmp_path):
    donor = create_model("resnet18", width=2)
    trained = trained_from(donor, monkeypatch, tmp_path, "--train.learning-rate", "1e-9")
    assert torch.allclose(trained["units.0.0.weight"], donor.units[0][0].weight.repeat_interleave(2, dim=0))
    with pytest.raises(SystemExit, match="donor"):
        trained_from(donor, monkeypatch, tmp_path / "exits", "--train.trained", "exits")


def test_train_reports_no_share_of_the_peak_for_images_of_two_sizes(tmp_path):
    cli.main([*TINY, "--train.epochs", "1", "--train.small-images", "0.5", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "report.json").read_text())["share_of_peak"] is None


@pytest.mark.parametrize(("pool", "copied"), [("avg", True), ("spp", False)])
def test_train_goes_on_with_the_last_exit_of_a_donor_that_has_the_same(pool, copied, monkeypatch, tmp_path):
    donor = create_model("resnet18", width=4, pool="avg")
    trained = trained_from(donor, monkeypatch, tmp_path, "--pool", pool, "--train.learning-rate", "1e-9")
    own = {name: tensor for name, tensor in donor.state_dict().items() if tensor.ndim > 1}
    same = {name for name, tensor in own.items() if name in trained and torch.allclose(trained[name], tensor)}
    assert own.keys() - same == (set() if copied else {name for name in own if name.startswith("exits.")})


def test_train_exits_for_other_classes_on_a_frozen_backbone(monkeypatch, tmp_path):
    donor = create_model("resnet18", width=4, num_classes=3)
    trained = trained_from(donor, monkeypatch, tmp_path, "--train.trained", "exits")
    assert {len(tensor) for name, tensor in trained.items() if "exits.8." in name and name.endswith("bias")} == {10}
    assert all(torch.equal(each, trained[name]) for name, each in donor.units.state_dict(prefix="units.").items())


def test_train_main_leaves_a_checkpoint_when_interrupted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    at_step(monkeypatch, 1, 2, interrupt)
    with pytest.raises(SystemExit) as exit:
        cli.main([*TINY, "--out", str(tmp_path)])
    assert exit.value.code == 130
    assert str(tmp_path / "checkpoint.pt") in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
