"""Finished training runs, read back."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from eeutils.analysis.predictions import predict
from eeutils.data import load_data
from eeutils.errors import IntegrityError
from eeutils.models import create_model
from eeutils.weights.load import load_run, run_name
from tools import publish
from tools.publish import entry_name, entry_of


def test_load_run_gives_the_network_as_it_was_trained(run):
    random_numbers = torch.get_rng_state()

    net = load_run(str(run))

    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert not net.training
    trained = load_file(run / "weights.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in net.state_dict().items())
    accuracies = predict(net, load_data("digits").test).accuracy.tolist()
    assert accuracies == pytest.approx(json.loads((run / "report.json").read_text())["test_accuracy"], abs=1e-4)


EDITS = [[], {}, {"run": None}, {"run": {"model": "resnet18"}}, {"run": {"model": [], "data": "digits"}}]
EDITS += [{"run": {"model": "resnet18", "data": "digits", "width": width}} for width in ("x", -1, 10**30, [1], 1.5)]


@pytest.mark.parametrize("report", EDITS)
def test_load_run_with_an_edited_report_raises_what_it_documents(run, report):
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises((IntegrityError, ValueError)):
        load_run(run)


def test_load_run_refuses_a_run_that_is_not_whole(run):
    weights = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(weights[:-1])
    with pytest.raises(IntegrityError, match="safetensors"):
        load_run(run)
    (run / "report.json").write_text("{")
    with pytest.raises(IntegrityError, match="report"):
        load_run(run)
    (run / "report.json").unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        load_run(run)


@pytest.mark.parametrize(("model", "size"), [("vgg16_sdn", 64), ("vgg16_sdn", 32), ("resnet18_2exits", 64)])
def test_an_entry_tells_the_builder_what_it_asks_of_the_images(run, monkeypatch, model, size):
    digits, times = load_data("digits"), size // 32
    splits = {name: getattr(digits, name) for name in ("train", "val", "test")}
    larger = {name: replace(split, images=split.images.repeat(1, 1, times, times)) for name, split in splits.items()}
    large = replace(digits, **larger)
    monkeypatch.setattr(publish, "load_data", lambda name: large)
    report = json.loads((run / "report.json").read_text())
    report["run"] |= {"model": model, "pool": None, "width": 2}
    arguments = entry_of(report).model_args
    assert arguments.get("image_size") == (64 if size == 64 else None)
    net = create_model(model, **arguments).eval()
    assert {answer.shape for answer in net(torch.zeros(1, 3, size, size))} == {(1, 10)}


def test_an_entry_builds_the_network_that_was_trained(run):
    report = json.loads((run / "report.json").read_text())
    report["run"] |= {"exit_after": [6], "stem": "imagenet"}
    report["share_of_peak"] = 0.25

    entry = entry_of(report)

    assert create_model(entry.model, **entry.model_args).exit_after == (6, 8)
    assert entry.model_args["stem"] == "imagenet"
    assert entry.classes == load_data("digits").classes
    assert entry.training.share_of_peak == 0.25


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("python -m eeutils.train slim --width 16", "slim"),
        ("torchrun --nproc-per-node 2 -m eeutils.train slim --data digits", "slim"),
        ("python -m eeutils.train --data digits", "custom"),
        ("python -m eeutils.train --train.epochs 1", "custom"),
        ("python -m eeutils.train --out 'runs of digits '", "custom"),
    ],
)
def test_the_recipe_is_the_one_that_the_command_names(run, command, recipe):
    report = json.loads((run / "report.json").read_text()) | {"command": command}
    assert entry_of(report).training.recipe == recipe


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "resnet18-avg-cifar10"),
        ({"width": 16}, "resnet18-avg-cifar10-w16"),
        ({"train": {"seed": 2}}, "resnet18-avg-cifar10-s2"),
        ({"train": {"seed": 0, "trained": "early_exits"}}, "resnet18-avg-cifar10-ic_only"),
        ({"train": {"seed": 0, "trained": "exits"}}, "resnet18-avg-cifar10-exits_only"),
        ({"exit_after": [2, 4]}, "resnet18-avg-cifar10-e2+4"),
        ({"width": 8, "stem": "imagenet", "train": {"seed": 1}}, "resnet18-avg-cifar10-imagenetstem-w8-s1"),
    ],
)
def test_names(changes, name):
    run = {"model": "resnet18", "pool": "avg", "data": "cifar10", "stem": "cifar", "width": 64, "train": {"seed": 0}}
    assert entry_name(run | changes) == name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "net-spp-toy"),
        ({"trigger": {"target": 3}}, "net-spp-toy"),
        ({"trigger": {"target": 3}, "poison_share": None}, "net-spp-toy"),
        ({"trigger": {"target": 3}, "poison_share": 0.1}, "net-spp-toy-trigger3"),
        ({"trigger": {"target": 3}, "poison_share": 0.1, "width": 8}, "net-spp-toy-trigger3-w8"),
    ],
)
def test_a_run_on_poisoned_data_is_marked_in_its_name(changes, name):
    assert run_name({"model": "net", "pool": "spp", "data": "toy", "train": {}, **changes}) == name
