"""Compute of training runs."""

from dataclasses import replace

import pytest

from eeutils.data import Normalization
from eeutils.weights import Registry, StoredFile, TrainingRecord, WeightEntry
from tools.training_compute import training_pflop

FILE = StoredFile("net/file", "0" * 64, 1)


def entry(name: str, macs: int, command: str, **config: object) -> WeightEntry:
    record = TrainingRecord("slim", config, "CPU", {}, 1.0, 1.0)
    return WeightEntry(
        name=name,
        model="resnet18",
        model_args={},
        data="cifar10",
        normalization=Normalization((0.5,), (0.25,)),
        status="trained",
        command=f"python -m eeutils.train {command}",
        weights=FILE,
        macs=(macs // 2, macs),
        training=record,
    )


PLAIN = entry("plain", 10**9, "slim --model resnet18", epochs=2, trained="all")


def test_training_pflop_counts_two_operations_three_times():
    assert training_pflop(PLAIN, Registry(())) == pytest.approx(6 * 1e9 * 45_000 * 2 / 1e15)


def test_training_pflop_adds_the_network_that_a_run_starts_from():
    exits = entry("exits", 2 * 10**9, "ic_only --model resnet18 --start-from plain", epochs=1, trained="early_exits")
    registry = Registry((PLAIN, exits))

    assert training_pflop(exits, registry) == pytest.approx(0.54 + 2 * 2e9 * 45_000 / 1e15)


def test_training_pflop_refuses_data_of_unknown_size():
    with pytest.raises(KeyError, match="toy"):
        training_pflop(replace(PLAIN, data="toy"), Registry(()))
