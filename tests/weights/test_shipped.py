"""The weights in the repository do what the registry says, on the real test images."""

import json
from dataclasses import asdict
from functools import cache

import pytest
import torch

from eeutils import load_history, load_predictions, load_weights, predict
from eeutils.train import TrainingRun, parsed
from eeutils.weights import WeightEntry, default_registry
from eeutils.weights.load import asked_arguments
from tools.publish import entry_name

TRAINED = [entry for entry in default_registry().entries if entry.status == "trained"]
NOT_TRAINED = [entry for entry in default_registry().entries if entry.status == "not trained"]
SOME = slice(200)  # of the test images; `make results` looks at all
# Shipped logits are half precision, which rounds by 0.016 at most below 64; sums taken in another order add less.
ROUNDING = 0.05

each_not_trained = pytest.mark.parametrize("entry", NOT_TRAINED, ids=lambda entry: entry.name)
each_trained = pytest.mark.parametrize("entry", TRAINED, ids=lambda entry: entry.name)


def run_of(entry: WeightEntry) -> TrainingRun:
    """Return the run that the command of `entry` asks for."""
    return asked_for(entry.training_arguments)


@cache
def asked_for(arguments: tuple[str, ...]) -> TrainingRun:
    return parsed(list(arguments))


@each_trained
def test_shipped_command_starts_from_nothing_that_does_not_ship(entry):
    start = run_of(entry).start_from
    assert start is None or start in {other.name for other in TRAINED}


@each_not_trained
def test_shipped_registry_has_commands_that_would_make_what_is_not_trained(entry):
    run, publishing = run_of(entry), entry.command.partition(" && ")[2]
    assert publishing.removesuffix(" --results-only") == f"python -m tools.publish {run.folder}"
    assert entry_name(asdict(run)) == entry.name
    assert run.model == entry.model
    asked = json.loads(json.dumps(asked_arguments(asdict(run))))  # the registry is JSON, which has lists and no tuples
    assert {name: entry.model_args.get(name) for name in asked} == asked


@each_trained
def test_shipped_weights_give_the_shipped_predictions_without_a_network(entry, cifar10, no_network):
    shipped = load_predictions(entry.name, "test")
    again = predict(load_weights(entry.name), cifar10.test.take(SOME))
    torch.testing.assert_close(again.logits, shipped.logits[:, SOME], atol=ROUNDING, rtol=0)
    assert torch.equal(again.costs, shipped.costs)


@each_trained
@pytest.mark.parametrize("split", ["val", "test"])
def test_shipped_predictions_are_those_of_the_record(entry, split, cifar10):
    predictions = load_predictions(entry.name, split)
    assert predictions.labels.tolist() == getattr(cifar10, split).labels.tolist()
    assert tuple(predictions.accuracy.tolist()) == entry.accuracy[split]
    assert tuple(predictions.costs.tolist()) == entry.macs
    assert len(load_history(entry.name).rows) == entry.training.config["epochs"]
