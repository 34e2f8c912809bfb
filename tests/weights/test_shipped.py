"""The weights in the repository do what the registry says, on the real test images."""

import json
import shlex
from dataclasses import asdict

import pytest

from eeutils.analysis.predictions import predict
from eeutils.train import parsed
from eeutils.weights import default_registry, load_history, load_predictions, load_weights
from eeutils.weights.runs import entry_name

TRAINED = [entry for entry in default_registry().entries if entry.status == "trained"]
ROUNDING = 0.0005  # 5 of 10,000 images may be judged otherwise where sums are taken in another order

each_trained = pytest.mark.parametrize("entry", TRAINED, ids=lambda entry: entry.name)


def test_slim_weights_of_all_five_networks_are_shipped():
    assert {f"{entry.model}-{entry.model_args.get('pool')}" for entry in TRAINED} >= {
        "resnet18-avg",
        "resnet18_2exits-avg",
        "resnet18_2exits-spp",
        "resnet18_3exits-avg",
        "resnet18_3exits-spp",
    }


@pytest.mark.parametrize("entry", [entry for entry in default_registry().entries if entry.status == "not trained"])
def test_what_is_not_trained_has_a_command_that_would_make_it(entry):
    training, _, publishing = entry.command.partition(" && ")
    run = parsed(shlex.split(training.removeprefix("python -m eeutils.train ")))

    assert publishing.removesuffix(" --results-only") == f"python -m eeutils.weights.publish {run.folder}"
    assert entry_name(asdict(run)) == entry.name
    assert run.model == entry.model
    asked = json.loads(json.dumps(run.model_args))  # the registry is JSON, which has lists and no tuples
    assert {name: entry.model_args.get(name) for name in asked} == asked


@each_trained
def test_accuracy_on_the_test_images_is_as_recorded(entry, cifar10):
    test = predict(load_weights(entry.name), cifar10.test)

    assert test.correct.double().mean(1).tolist() == pytest.approx(entry.accuracy["test"], abs=ROUNDING)
    assert test.costs.tolist() == list(entry.macs)


@each_trained
@pytest.mark.parametrize("split", ["val", "test"])
def test_shipped_predictions_are_those_of_the_record(entry, split, cifar10):
    predictions = load_predictions(entry.name, split)

    assert predictions.labels.tolist() == getattr(cifar10, split).labels.tolist()
    assert tuple(predictions.correct.double().mean(1).tolist()) == entry.accuracy[split]


@each_trained
def test_the_history_has_every_epoch_of_its_recipe(entry):
    assert len(load_history(entry.name).rows) == entry.training.config["epochs"]
