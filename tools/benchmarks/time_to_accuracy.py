"""Time training from scratch to a test accuracy: `python -m tools.benchmarks.time_to_accuracy`.

Trains one network a seed and reads the test split once, after the last epoch: test data choose nothing, no epoch
either. The clock covers the whole of `fit`, training and validation passes (airbench, github.com/KellerJordan/
cifar10-airbench, also times whole runs). What comes only once is told apart: the set-up, and what the first epoch takes
longer than the median of the others, which is compilation and warm-up.

With `--other-peak` the time on another card is estimated, on the assumption that it reaches the same share of its peak.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import pandas as pd
import torch
import tyro

from eeutils.analysis.predictions import predict
from eeutils.data import ImageData, load_data
from eeutils.device import device_name, matrix_peak, share_of_peak
from eeutils.errors import message_instead_of_traceback
from eeutils.models import MultiExitNet, create_model
from eeutils.models.registry import fitting_arguments
from eeutils.training import History, TrainConfig, choose_device, fit, recipe
from eeutils.training.preflight import autocast_dtype
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.tables import frame_as_markdown

_TERA = 1e12


@dataclass(frozen=True)
class TimeToAccuracy:
    """Options: what to train, and the target.

    Attributes:
        model: a network of `eeutils.models.list_models()`.
        pool: how exits pool their feature map.
        width: channels of the first layer.
        data: a data set of `eeutils.data.list_data()`.
        recipe: of `eeutils.training.list_recipes()`, one that trains the whole network.
        epochs: passes over the training split; by default the recipe's.
        seeds: so many runs, with seeds 0, 1, ...
        precision: of the training; "auto" as in `TrainConfig`.
        compile: likewise.
        device: where to train; by default a GPU if there is one.
        target: test accuracy that the last exit should reach in the mean over seeds, as a share.
        other_peak: TFLOPS of another card, to estimate the time there; a T4's data sheet says 65 (fp16).
        out: the report.
    """

    model: str = "resnet18_3exits"
    pool: str = "conv+conv+spp"
    width: int = 64
    data: str = "cifar10"
    recipe: str = "modern"
    epochs: int | None = None
    seeds: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    device: str | None = None
    target: float = 0.95
    other_peak: float | None = None
    out: Path = RESULTS / "time_to_accuracy.md"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be positive, got {self.seeds}")
        if not 0 < self.target <= 1:
            raise ValueError(f"target is a share in (0, 1], got {self.target}")
        if self.other_peak is not None and not self.other_peak > 0:
            raise ValueError(f"other_peak must be positive TFLOPS, got {self.other_peak}")

    def config(self, seed: int) -> TrainConfig:
        """The recipe with the options applied.

        Raises:
            ValueError: if it is unknown, a value makes no sense, or it leaves the backbone as it is, here at random.
        """
        changes = {} if self.epochs is None else {"epochs": self.epochs}
        config = recipe(self.recipe, seed=seed, precision=self.precision, compile=self.compile, **changes)
        if config.trained != "all":
            raise ValueError(f"recipe {self.recipe!r} trains {config.trained} alone; choose one for the whole network")
        return config


@dataclass(frozen=True)
class TimedRun:
    """One seed.

    Attributes:
        accuracy: of each exit on the test split, shallowest first, 0 to 1.
        macs: multiply-adds of one image through the whole network.
        seconds: of all of `fit`.
        steady_seconds: see `steady_seconds`.
        images_per_second: of the passes over the training split.
    """

    accuracy: tuple[float, ...]
    macs: int
    seconds: float
    steady_seconds: float
    images_per_second: float

    @property
    def one_off(self) -> float:
        """Seconds of set-up, compilation and warm-up; NaN if unknown."""
        return self.seconds - self.steady_seconds


@dataclass(frozen=True)
class Measurement:
    """All seeds on one device.

    Attributes:
        runs: seed 0 first.
        epochs: of each.
        device: its name.
        dtype: what training computed in.
        peak: floating-point operations a second that the device reaches on matrices in `dtype`.
    """

    runs: tuple[TimedRun, ...]
    epochs: int
    device: str
    dtype: torch.dtype
    peak: float

    def mean(self, name: str) -> float:
        """Mean of one number over the runs."""
        return fmean(getattr(run, name) for run in self.runs)

    @property
    def share_of_peak(self) -> float:
        return share_of_peak(self.runs[0].macs, self.mean("images_per_second"), self.peak)


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Train, print the report and write it down; what cannot be had ends with a message, not with a traceback."""
    options = tyro.cli(
        TimeToAccuracy, prog="python -m tools.benchmarks.time_to_accuracy", description=__doc__, args=args
    )
    publish(as_markdown(options, measure(options)), options.out)


def measure(options: TimeToAccuracy) -> Measurement:
    """Train and test all seeds, one after the other, then measure the device's peak."""
    device = choose_device(options.device)
    configs, dtype = [options.config(seed) for seed in range(options.seeds)], autocast_dtype(options.precision, device)
    with torch.device("meta"):
        _build(options)  # a wrong name is found out before anything is downloaded
    data = load_data(options.data)
    return Measurement(
        runs=tuple(timed_run(options, data, config, device) for config in configs),
        epochs=configs[0].epochs,
        device=device_name(device),
        dtype=dtype,
        peak=matrix_peak(device, dtype),
    )


def timed_run(options: TimeToAccuracy, data: ImageData, config: TrainConfig, device: torch.device) -> TimedRun:
    """Train one network by the clock, then test it."""
    shape = fitting_arguments(len(data.classes), data.image_shape)
    torch.manual_seed(config.seed)
    net = _build(options, **shape)
    started = time.perf_counter()
    history = fit(net, data, config, device=device)  # the network comes back to the CPU: nothing is pending
    seconds = time.perf_counter() - started
    torch.compiler.reset()  # the next seed compiles for itself; and after a few, torch would no longer compile at all
    test = predict(net, data.test, device=device)
    return TimedRun(
        accuracy=tuple(test.accuracy.tolist()),
        macs=int(test.costs[-1]),
        seconds=seconds,
        steady_seconds=steady_seconds(history),
        images_per_second=images_per_second(history),
    )


def steady_seconds(history: History) -> float:
    """Seconds of all epochs if the first took no longer than the median of the others; NaN if there are no others."""
    seconds = history.frame()["seconds"]
    first, others = seconds.iloc[0], seconds.iloc[1:]
    return float(min(first, others.median()) + others.sum()) if len(others) else float("nan")


def images_per_second(history: History) -> float:
    """The median over the epochs without the first, which is slower; if it is the only one, its own."""
    rates = history.frame()["images_per_second"]
    return float((rates.iloc[1:] if len(rates) > 1 else rates).median())


def seconds_elsewhere(seconds: float, peak: float, other_peak: float) -> float:
    """Scale `seconds` measured at `peak` to a device with another peak, at the same share of it.

    Args:
        seconds: here, without what comes only once.
        peak: operations a second here.
        other_peak: in the same unit.
    """
    return seconds * peak / other_peak


def table(measurement: Measurement) -> pd.DataFrame:
    """One row per seed, then mean and sample standard deviation; accuracies in percent."""
    rows = {
        f"seed {seed}": {
            **{f"exit {number} (%)": 100 * share for number, share in enumerate(run.accuracy, 1)},
            "whole run (s)": run.seconds,
            "one-off (s)": run.one_off,
            "without it (s)": run.steady_seconds,
            "images/s": run.images_per_second,
        }
        for seed, run in enumerate(measurement.runs)
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    if len(frame) > 1:
        frame = pd.concat([frame, frame.agg(["mean", "std"]).rename({"std": "standard deviation"})])
    return frame


def as_markdown(options: TimeToAccuracy, measurement: Measurement) -> str:
    """The whole report."""
    dtype = str(measurement.dtype).removeprefix("torch.")
    frame = table(measurement)
    frame["images/s"] = frame["images/s"].map("{:,.0f}".format)
    parts = [
        f"`{options.model}` ({options.pool}, width {options.width}) on {options.data}: recipe `{options.recipe}`, "
        f"{measurement.epochs} epoch(s), {dtype}, compile {options.compile}, on {measurement.device}, torch "
        f"{torch.__version__}. Accuracies are on the test split, read once after the last epoch.",
        frame_as_markdown(frame),
        _target(options.target, measurement),
        _time(measurement),
        f"**Use of the device.** {measurement.mean('images_per_second'):,.0f} images/s of training are "
        f"{measurement.share_of_peak:.1%} of the {measurement.peak / _TERA:,.4g} TFLOPS that it reached right after on "
        f"a product of matrices in {dtype}.",
    ]
    if options.other_peak is not None:
        parts.append(_estimate(options.other_peak, measurement))
    return "\n\n".join(parts) + "\n"


def _target(target: float, measurement: Measurement) -> str:
    reached = fmean(run.accuracy[-1] for run in measurement.runs)
    return (
        f"**Target.** {target:.2%} by the last exit, in the mean over {len(measurement.runs)} seed(s): "
        f"{'reached' if reached >= target - 1e-9 else 'NOT reached'}, {reached:.2%}."
    )


def _time(measurement: Measurement) -> str:
    text = f"**Time.** {measurement.mean('seconds'):,.1f} s from the call of `fit` to its end, validation included"
    if measurement.epochs == 1:
        return f"{text}. What of it comes only once cannot be told from one epoch."
    return (
        f"{text}; {measurement.mean('one_off'):,.1f} s of it come only once (set-up, and what the first epoch took "
        "longer than the median of the others: compilation and warm-up), "
        f"**{measurement.mean('steady_seconds'):,.1f} s** without. Reading the data, drawing the first weights and the "
        "test are not counted."
    )


def _estimate(other_peak: float, measurement: Measurement) -> str:
    text = f"**Another card, by estimate.** With a peak of {other_peak:,.4g} TFLOPS"
    if measurement.epochs == 1:
        return f"{text}: none, since what comes only once cannot be told from one epoch."
    seconds = seconds_elsewhere(measurement.mean("steady_seconds"), measurement.peak, other_peak * _TERA)
    return (
        f"{text}: {seconds:,.0f} s ({seconds / 60:,.1f} minutes), without what comes only once, if it reaches the same "
        "share of its peak. The peak here is measured; one from a data sheet is more than a card reaches, which makes "
        "the estimate too short. A slower card is easier to keep busy, which makes it too long."
    )


def _build(options: TimeToAccuracy, **shape: int) -> MultiExitNet:
    return create_model(options.model, pool=options.pool, width=options.width, **shape)


if __name__ == "__main__":
    main()
