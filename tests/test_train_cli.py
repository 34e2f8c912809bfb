import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from eeutils import train as cli
from eeutils.analysis.predictions import predict
from eeutils.data import ImageData, Trigger, list_data, load_data, stamped
from eeutils.models import create_model, list_models
from eeutils.training import list_recipes, recipe
from eeutils.training.checkpoint import load_checkpoint

COMMAND = [sys.executable, "-m", "eeutils.train"]
TINY = [
    "digits",
    "--model",
    "resnet18_2exits",
    "--pool",
    "spp",
    "--width",
    "2",
    "--stem",
    "imagenet",
    "--data",
    "digits",
]


def error_of(capsys, *args: str) -> str:
    """The message that `args` end with."""
    with pytest.raises(SystemExit) as exit:
        cli.main(list(args))
    assert exit.value.code not in (0, None)
    return str(exit.value.code) + "".join(capsys.readouterr())


@pytest.mark.parametrize("args", [["--help"], ["digits", "--help"]])
def test_help_is_shown(capsys, args):
    with pytest.raises(SystemExit) as exit:
        cli.main(args)
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "digits" in shown
    expected = ["upf", "early exits of a trained network", "slim --help"]
    assert all(part in shown for part in (expected if args == ["--help"] else ["--train.learning-rate"]))


def test_a_run_writes_its_files_and_a_second_one_only_reads_them(tmp_path, capsys, monkeypatch):
    args = [*TINY, "--train.epochs", "1", "--out", str(tmp_path / "run")]
    cli.main(args)
    folder = tmp_path / "run"
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint.pt",
        "history.csv",
        "report.json",
        "weights.safetensors",
    ]
    report = json.loads((folder / "report.json").read_text())
    data = load_data("digits")
    net = create_model("resnet18_2exits", pool="spp", width=2, stem="imagenet")
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    test = predict(net, data.test)
    assert report["test_accuracy"] == pytest.approx(test.accuracy.tolist(), abs=1e-4)
    assert report["macs"] == test.costs.tolist()
    assert report["run"]["train"]["epochs"] == 1
    assert str(report["test_accuracy"]) in capsys.readouterr().out
    assert len(pd.read_csv(folder / "history.csv")) == 1

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr("eeutils.data.TrainBatches.epoch", None)  # nothing is trained again
    monkeypatch.setattr(cli, "device_name", lambda device: "another machine")
    cli.main(args)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert str(report["test_accuracy"]) in capsys.readouterr().out


def test_what_was_trained_anew_is_reported_anew(tmp_path):
    args = [*TINY, "--train.epochs", "1", "--out", str(tmp_path)]
    cli.main(args)
    (tmp_path / "checkpoint.pt").unlink()
    cli.main([*args, "--train.seed", "1"])
    assert json.loads((tmp_path / "report.json").read_text())["run"]["train"]["seed"] == 1


@pytest.mark.parametrize(
    ("args", "model", "data"),
    [
        ("cnn_mobilenet", "mobilenet", "cifar10"),
        ("cnn_wideresnet32_4_tinyimagenet", "wideresnet32_4", "tinyimagenet"),
        ("sdn_vgg16", "vgg16_sdn", "cifar10"),
        ("sdn_vgg16_tinyimagenet", "vgg16_sdn", "tinyimagenet"),
        ("ic_only_tinyimagenet", "resnet18_3exits", "tinyimagenet"),
        ("digits", "resnet18_3exits", "digits"),
        ("slim", "resnet18_3exits", "cifar10"),
        ("sdn_vgg16_tinyimagenet --model resnet18 --data cifar100", "resnet18", "cifar100"),
    ],
)
def test_a_recipe_has_the_network_and_the_data_of_its_name_unless_others_are_asked_for(args, model, data):
    run = cli.parsed(args.split())
    assert (run.model, run.data, run.train) == (model, data, recipe(args.split()[0]))


def test_every_recipe_has_a_network_and_data_that_there_are():
    runs = [cli.parsed([name]) for name in list_recipes()]
    assert {run.model for run in runs} <= set(list_models())
    assert {run.data for run in runs} <= set(list_data())


def test_help_tells_a_recipes_own_network_and_data(capsys):
    for args in (["--help"], ["sdn_resnet56_tinyimagenet", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(args)
    shown = capsys.readouterr().out
    told = ("resnet56_sdn on tinyimagenet", "(default: resnet56_sdn)", "(default: tinyimagenet)")
    assert all(words in shown for words in told)


@pytest.mark.parametrize(
    ("args", "whom"), [(["ic_only"], "early exits"), (["digits", "--train.trained", "exits"], "exits")]
)
def test_exits_are_not_trained_alone_on_a_backbone_that_is_not(capsys, monkeypatch, tmp_path, args, whom):
    monkeypatch.setattr(cli, "load_data", None)
    shown = error_of(capsys, *args, "--data", "digits", "--out", str(tmp_path))
    assert f"trains {whom} alone; name the trained network by --start-from" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "resnet19"], "'resnet19'"),
        (["--pool", "mean"], "'mean'"),
        (["--data", "cifar11"], "'cifar11'"),
        (["--width", "0"], "width must be"),
        (["--device", "tpu9"], "'tpu9'"),
        (["--poison-share", "2"], "share must be in (0, 1]"),
        (["--poison-share", "0.1", "--trigger.target", "10"], "target must be in 0..9, got 10"),
        (["--trigger.size", "0"], "size must be"),
        (["--train.learning-rate", "-1"], "learning_rate must be positive, got -1.0"),
        (["--train.loss.weights", "deepest"], "unknown weights 'deepest'; choose from "),
    ],
)
def test_a_wrong_value_ends_with_one_clear_line(capsys, tmp_path, args, message):
    shown = error_of(capsys, *TINY, "--out", str(tmp_path), *args)
    assert message in " ".join(shown.replace("│", " ").split())  # long lines are broken in a frame
    assert "Traceback" not in shown


def test_a_wrong_name_is_found_out_before_any_data_is_fetched(capsys, monkeypatch):
    monkeypatch.setattr(cli, "load_data", None)
    assert "'resnet19'" in error_of(capsys, "digits", "--model", "resnet19")


def test_an_unknown_recipe_lists_the_choices(capsys):
    shown = error_of(capsys, "fast")
    assert "fast" in shown
    assert all(name in shown for name in ("digits", "modern", "slim", "upf"))


def test_an_unwritable_folder_is_named(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write" in error_of(capsys, *TINY, "--out", str(tmp_path / "file"))


def test_a_shell_gets_an_exit_code_and_a_line(tmp_path):
    done = subprocess.run([*COMMAND, *TINY, "--model", "resnet19"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: model must be one of")
    assert len(done.stderr.splitlines()) == 1


def wait_for_epoch(epoch: int, checkpoint: Path, process: subprocess.Popen) -> None:
    """Until the process has saved so many epochs."""
    while not (checkpoint.exists() and load_checkpoint(checkpoint)["epoch"] >= epoch):
        assert process.poll() is None
        time.sleep(0.05)


def test_ctrl_c_leaves_a_checkpoint_and_a_message(tmp_path):
    args = [*COMMAND, *TINY, "--train.epochs", "100000", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Where the tests run in the background of a script, Ctrl-C is ignored, and whoever they start inherits that.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heeding) as process:
        try:
            wait_for_epoch(1, tmp_path / "checkpoint.pt", process)
            process.send_signal(signal.SIGINT)
            _, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "training was interrupted" in shown
    assert "Traceback" not in shown
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] >= 1
    assert all(torch.isfinite(tensor).all() for tensor in state["net"].values())


def test_a_backdoor_is_trained_recorded_and_named(tmp_path, monkeypatch):
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
    with pytest.raises(ValueError, match="on other data"):  # of the same name, so the finished run must be told apart
        cli.train(other)


def test_without_poison_the_trigger_is_of_no_account(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "fit", lambda net, data, *args, **kwargs: seen.append(data) or sys.exit())
    with pytest.raises(SystemExit):
        cli.train(cli.parsed([*TINY, "--trigger.target", "3", "--out", str(tmp_path)]))
    assert torch.equal(seen[0].train.labels, load_data("digits").train.labels)
    assert seen[0].name == "digits"


def test_large_images_reach_the_builders_that_ask_for_their_size(monkeypatch, tmp_path):
    digits = load_data("digits")
    large = [
        replace(split, images=split.images.repeat(1, 1, 2, 2)) for split in (digits.train, digits.val, digits.test)
    ]
    monkeypatch.setattr(cli, "load_data", lambda name: ImageData("large", *large))
    built = []
    monkeypatch.setattr(cli, "fit", lambda net, *args, **kwargs: built.append(net) or sys.exit())
    for model in ("vgg16_sdn", "resnet18_2exits"):
        with pytest.raises(SystemExit):
            cli.train(cli.parsed(["sdn_vgg16_tinyimagenet", "--model", model, "--width", "2", "--out", str(tmp_path)]))
        assert {answer.shape[1] for answer in built[-1].eval()(torch.zeros(1, 3, 64, 64))} == {10}
    assert len(built) == 2


def test_exits_can_be_placed_from_the_shell():
    run = cli.TrainingRun(model="resnet18_2exits", exit_after=(6,), width=4)

    assert run.folder.name == "resnet18_2exits-cifar10-e6-w4-s0"
    assert cli._build(run, num_classes=3).exit_after == (6, 8)
    assert cli._build(cli.TrainingRun(model="resnet18_2exits", width=4)).exit_after == (4, 8)


def test_a_network_that_does_not_take_an_option_is_named():
    with pytest.raises(ValueError, match=r"vgg16.*stem"):
        cli._build(cli.TrainingRun(model="vgg16", stem="cifar"))


def test_where_to_start_from_is_a_folder_or_weights_and_the_message_names_both(tmp_path):
    command = f"ic_only --model resnet18_2exits --width 2 --data digits --start-from runs/none --out {tmp_path}"

    with pytest.raises(SystemExit, match=r"no folder runs/none of a finished run, and of weights: unknown weights"):
        cli.main(command.split())


def test_training_can_start_from_trained_weights(monkeypatch, tmp_path, capsys):
    """One epoch of its early exits alone leaves a trained backbone bit for bit."""
    donor = create_model("resnet18", width=4)
    monkeypatch.setattr(cli, "load_weights", lambda name: donor)

    command = "ic_only --model resnet18_2exits --width 4 --data digits --start-from donor --train.epochs 1 --out"
    cli.main([*command.split(), str(tmp_path)])

    trained = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in donor.state_dict().items())


def test_a_network_several_times_narrower_is_widened(monkeypatch, tmp_path):
    donor = create_model("resnet18", width=2)
    monkeypatch.setattr(cli, "load_weights", lambda name: donor)

    command = "digits --model resnet18_2exits --width 4 --start-from donor --train.epochs 1 --train.learning-rate 1e-9"
    cli.main([*command.split(), "--out", str(tmp_path)])

    stem, wide_stem = donor.units[0][0].weight, load_file(tmp_path / "weights.safetensors")["units.0.0.weight"]
    torch.testing.assert_close(wide_stem, stem.repeat_interleave(2, dim=0))


def test_exits_for_other_classes_are_trained_on_a_backbone_that_stays(monkeypatch, tmp_path):
    donor = create_model("resnet18", width=4, num_classes=3)
    monkeypatch.setattr(cli, "load_weights", lambda name: donor)

    command = "digits --model resnet18_2exits --width 4 --start-from donor --train.trained exits --train.epochs 1 --out"
    cli.main([*command.split(), str(tmp_path)])

    trained = load_file(tmp_path / "weights.safetensors")
    assert {len(tensor) for name, tensor in trained.items() if fnmatch(name, "exits.8.*.bias")} == {10}
    backbone = {name: tensor for name, tensor in donor.state_dict().items() if name.startswith("units.")}
    assert all(torch.equal(tensor, trained[name]) for name, tensor in backbone.items())


def test_exits_are_not_trained_on_the_backbone_of_another_network(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "load_weights", lambda name: create_model("resnet18", width=2))

    command = "digits --model resnet18_2exits --width 4 --start-from donor --train.trained exits --out"
    with pytest.raises(SystemExit, match="the donor has another backbone"):
        cli.main([*command.split(), str(tmp_path)])
