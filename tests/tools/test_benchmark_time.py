"""Time to an accuracy: what is timed, what is told apart, what is estimated."""

import math

import pytest
import torch

from eeutils.analysis.predictions import predict
from eeutils.data import load_data
from eeutils.errors import TrainingDivergedError
from eeutils.training import History
from tools.benchmarks import time_to_accuracy as bench
from tools.benchmarks.time_to_accuracy import Measurement, TimedRun, TimeToAccuracy, as_markdown, main, table

TINY = ["--data", "digits", "--recipe", "digits", "--width", "2", "--device", "cpu"]


def history(*seconds: float) -> History:
    """History of epochs, each of which trains 100 images a second for each second that it takes."""
    return History(
        tuple({"epoch": n, "seconds": each, "images_per_second": 100 * each} for n, each in enumerate(seconds, 1))
    )


def timed(last: float, seconds: float = 100.0, steady: float = 80.0) -> TimedRun:
    """Run with two exits, whose steps of 50 million multiply-adds make 3e11 operations a second."""
    return TimedRun((0.5, last), 50_000_000, seconds, steady, images_per_second=1000.0)


def measured(*runs: TimedRun, epochs: int = 80) -> Measurement:
    return Measurement(runs, epochs, "a card", torch.bfloat16, peak=1.2e12)


@pytest.fixture
def peak(monkeypatch):
    """Instead of measuring one."""
    monkeypatch.setattr(bench, "matrix_peak", lambda device, dtype: 1e12)


@pytest.mark.parametrize(
    ("seconds", "steady"),
    [
        ((9, 2, 3, 7), 3 + 2 + 3 + 7),  # the first took 6 s longer than the others' median
        ((9, 2), 2 + 2),
        ((1, 2, 3, 7), 1 + 2 + 3 + 7),  # the first was no slower: nothing came only once
    ],
)
def test_steady_seconds_counts_the_first_epoch_as_the_median(seconds, steady):
    assert bench.steady_seconds(history(*seconds)) == steady


def test_steady_seconds_of_one_epoch_is_nan():
    assert math.isnan(bench.steady_seconds(history(9)))


def test_images_per_second_is_of_later_epochs():
    assert bench.images_per_second(history(9, 2, 3, 7)) == 300
    assert bench.images_per_second(history(9)) == 900


def test_seconds_elsewhere_scale_with_the_peak():
    assert bench.seconds_elsewhere(60.0, peak=650.0, other_peak=65.0) == 600.0


def test_table_has_seeds_mean_and_spread():
    frame = table(measured(timed(0.94, 101.0), timed(0.96, 99.0), timed(0.95, 103.0)))

    assert frame.index.tolist() == ["seed 0", "seed 1", "seed 2", "mean", "standard deviation"]
    assert frame["exit 2 (%)"].tolist() == pytest.approx([94, 96, 95, 95, 1])
    assert frame["whole run (s)"].tolist() == pytest.approx([101, 99, 103, 101, 2])
    assert frame["one-off (s)"].tolist() == pytest.approx([21, 19, 23, 21, 2])
    assert frame["without it (s)"].tolist() == [80, 80, 80, 80, 0]
    assert table(measured(timed(0.94))).index.tolist() == ["seed 0"]  # of one there is no spread


@pytest.mark.parametrize(("last", "verdict"), [(0.94, "reached, 95.00%"), (0.93, "NOT reached, 94.50%")])
def test_as_markdown_judges_the_mean_of_the_last_exit(last, verdict):
    report = as_markdown(TimeToAccuracy(), measured(timed(last), timed(0.96)))

    assert f"95.00% by the last exit, in the mean over 2 seed(s): {verdict}." in report


def test_main_trains_each_seed_and_tests_it_once(tmp_path, monkeypatch, peak, capsys):
    done, nets, fit = [], [], bench.fit

    def noted_fit(net, data, config, **kwargs):
        done.append(f"fit {config.seed}")
        nets.append(net)
        return fit(net, data, config, **kwargs)

    def noted_predict(net, split, **kwargs):
        done.append(f"test {nets.index(net)}" if split is data.test else "other")
        return predict(net, split, **kwargs)

    data = load_data("digits")
    monkeypatch.setattr(bench, "load_data", lambda name: data)
    monkeypatch.setattr(bench, "fit", noted_fit)
    monkeypatch.setattr(bench, "predict", noted_predict)
    out = tmp_path / "new" / "report.md"

    main([*TINY, "--epochs", "2", "--seeds", "2", "--out", str(out)])

    assert done == ["fit 0", "test 0", "fit 1", "test 1"]
    report = out.read_text("utf-8")
    assert report in capsys.readouterr().out
    assert "2 epoch(s), float32" in report
    for seed, net in enumerate(nets):
        accuracy = 100 * predict(net, data.test).accuracy
        assert f"| seed {seed} | " + " | ".join(f"{share:.2f}" for share in accuracy.tolist()) in report
    weights = [next(net.parameters()) for net in nets]
    assert not torch.equal(*weights)


def test_main_keeps_the_last_report_if_a_run_fails(tmp_path, monkeypatch, peak):
    def diverging(options, data, config, device):
        if config.seed == 1:
            raise TrainingDivergedError("the loss became nan")
        return timed(0.95)

    monkeypatch.setattr(bench, "timed_run", diverging)
    out = tmp_path / "report.md"
    for before in ([], [out]):
        with pytest.raises(SystemExit, match="error: the loss became nan"):
            main([*TINY, "--seeds", "2", "--out", str(out)])
        assert list(tmp_path.iterdir()) == before
        out.write_text("as it was")
    assert out.read_text() == "as it was"
