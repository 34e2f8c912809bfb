import json

import pytest
import torch
from safetensors.torch import load_file

from eeutils import create_model, list_models, load_data, predict
from eeutils.errors import IntegrityError
from eeutils.weights import load_run
from eeutils.weights.load import run_name
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


def test_entry_of_builds_the_network_that_was_trained(run):
    report = json.loads((run / "report.json").read_text())
    report["run"] |= {"exit_after": [6], "stem": "imagenet"}
    report["share_of_peak"] = 0.25
    entry = entry_of(report)
    assert create_model(entry.model, **entry.model_args).exit_after == (6, 8)
    assert entry.model_args["stem"] == "imagenet"
    assert entry.classes == load_data("digits").classes
    assert entry.training.share_of_peak == 0.25


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "resnet18-avg-cifar10"),
        ({"train": {"seed": 2}}, "resnet18-avg-cifar10-s2"),
        ({"train": {"seed": 0, "trained": "early_exits"}}, "resnet18-avg-cifar10-ic_only"),
        ({"exit_after": [2, 4]}, "resnet18-avg-cifar10-e2+4"),
        ({"width": 8, "stem": "imagenet", "train": {"seed": 1}}, "resnet18-avg-cifar10-imagenetstem-w8-s1"),
        ({"trigger": {"target": 3}, "poison_share": None}, "resnet18-avg-cifar10"),
        ({"trigger": {"target": 3}, "poison_share": 0.1, "width": 8}, "resnet18-avg-cifar10-trigger3-w8"),
    ],
)
def test_entry_name_tells_all_that_differs(changes, name):
    run = {"model": "resnet18", "pool": "avg", "data": "cifar10", "stem": "cifar", "width": 64, "train": {"seed": 0}}
    assert entry_name(run | changes) == name


@pytest.mark.parametrize("model", list_models())
def test_run_name_leaves_out_the_width_of_the_published_network_alone(model):
    def shapes(**width: int) -> list[torch.Size]:
        with torch.device("meta"):
            return [parameter.shape for parameter in create_model(model, **width).parameters()]

    run = {"model": model, "data": "cifar10", "train": {}}
    for width in (16, 32, 64):
        assert (run_name(run | {"width": width}) == run_name(run)) == (shapes(width=width) == shapes())
