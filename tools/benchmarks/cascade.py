"""Time saved by early exits, on real images: `python -m tools.benchmarks.cascade`.

Everything is measured in one run, the contenders taking turns, so that a busy machine slows all alike. A speed-up is
over the same network, prepared in the same way, computing every exit of every image; the next column has it over the
plain network, which has no heads to compute on the way. The first is held against two limits:

- what the multiply-adds saved would allow if time were proportional to them;
- what the network's stages allow: the time of each stage (from one exit to the next, head included) on a full batch,
  weighted by the share of images that still come to it. The rest is the cascade's own cost: scores, gathering those
  who stay, and smaller batches being slower an image.

Two contenders compute in bfloat16, the plain network and one of the cascades, to see what that is worth beside it.
"""

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from torch import Tensor

from eeutils.analysis.policies import Policy, ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.seconds import measure_seconds, stage_seconds, timed
from eeutils.analysis.thresholds import accuracy_cost_curve, choose_thresholds
from eeutils.cascade import Cascade
from eeutils.data import Split, load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.models import MultiExitNet, drop_exits, prepared_for_inference
from eeutils.training import choose_device
from eeutils.weights import load_predictions, load_weights, weight_entry
from tools.benchmarks.report import publish, report_path
from tools.tables import frame_as_markdown

MAX_DROPS = (0.0, 0.005, 0.01)
BUDGET = 0.5
# Images that an accuracy is worth telling of; of 200 its standard error is over two points.
_ENOUGH_TO_JUDGE = 1_000


@dataclass(frozen=True)
class Benchmark:
    """Options: what to measure, and how.

    Attributes:
        weights: the network with early exits.
        plain: the network without; by default the same one without its early exits.
        device: "cpu" or "cuda".
        batch_sizes: by default 1 and 256, on a GPU 1 and 4096.
        images: at least so many are timed where batches are larger than 1; a tenth of them one by one.
        repeats: of everything; the first pass warms up and is not counted.
        out: the report; by default results/benchmark.md, on a GPU results/benchmark-cuda.md.
    """

    weights: str = "resnet18_3exits-spp-cifar10-w16"
    plain: str | None = None
    device: str = "cpu"
    batch_sizes: tuple[int, ...] | None = None
    images: int = 2048
    repeats: int = 5
    out: Path | None = None


@dataclass(frozen=True)
class Timing:
    """Times of all contenders on the same images.

    Attributes:
        batch_size: images at a time.
        num_images: how many were timed.
        seconds: contender -> (R,) float64, one number a repeat; "no early exit" is what speed-ups are over.
        stage_seconds: (R, E) float64, what each stage takes when nobody leaves.
        predicted: contender -> (N,) classes.
        exit_index: contender -> (N,) exits, for those that leave early and have limits to be held against.
        labels: (N,) of the images.
        costs: (E,) multiply-adds up to each exit.
    """

    batch_size: int
    num_images: int
    seconds: dict[str, Tensor]
    stage_seconds: Tensor
    predicted: dict[str, Tensor]
    exit_index: dict[str, Tensor]
    labels: Tensor
    costs: Tensor


WHOLE, PLAIN = "no early exit", "plain network"
_LOSING = {drop: f"{100 * drop:g} points allowed" for drop in MAX_DROPS}
_ALSO_IN_BF16 = _LOSING[MAX_DROPS[1]]


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Measure, print the report and write it; an unmet requirement ends with a message, not a traceback."""
    options = tyro.cli(Benchmark, prog="python -m tools.benchmarks.cascade", description=__doc__, args=args)
    publish(run(options), options.out or report_path("benchmark", options.device))


def run(options: Benchmark) -> str:
    """The whole report, in Markdown."""
    device = choose_device(options.device)
    net = load_weights(options.weights, device)
    plain = load_weights(options.plain, device) if options.plain else drop_exits(net, net.exit_after[:-1])
    validation, test = load_predictions(options.weights, "val"), load_predictions(options.weights, "test")
    data = load_data(weight_entry(options.weights).data)
    sizes = options.batch_sizes or ((1, 4096) if device.type == "cuda" else (1, 256))
    against = f"`{options.plain}`" if options.plain else "itself without early exits"
    parts = [f"`{options.weights}` against {against}, on {machine(device)}\n"]
    for size in sizes:
        images = data.test.take(slice(0, max(options.images // 10 if size == 1 else options.images, size)))
        rules = policies(validation, measure_seconds(net, data.val, batch_size=size))
        timing = measure(net, plain, rules, images, size, options.repeats, validation.costs)
        heading = f"**Batches of {size}**, {timing.num_images:,} test images"
        parts.append(f"{heading}\n\n{frame_as_markdown(summary(timing))}\n")
    parts.append(f"{sweep_report(test, options.repeats)}\n")
    return "\n".join(parts)


def policies(validation: Predictions, seconds: Tensor) -> dict[str, Policy]:
    """The rules to compare, chosen on validation; the budgets in multiply-adds, and in `seconds` (E,) up to an exit."""
    chosen = {name: choose_thresholds(validation, max_drop=drop).policy for drop, name in _LOSING.items()}
    for measure, measured in {"multiply-adds": validation, "time": replace(validation, costs=seconds)}.items():
        if measured.relative_costs[0] <= BUDGET:
            chosen[f"at most {BUDGET:.0%} of the {measure}"] = choose_thresholds(measured, budget=BUDGET).policy
    return chosen


def measure(
    net: MultiExitNet,
    plain: MultiExitNet,
    rules: dict[str, Policy],
    split: Split,
    batch_size: int,
    repeats: int,
    costs: Tensor,
) -> Timing:
    """Time everything on the images of `split`, on the device where the networks are; contenders take turns."""
    device = next(net.parameters()).device
    batches = [images for images, _ in split.batches(batch_size, device)]
    whole, bare = prepared_for_inference(net), prepared_for_inference(plain)
    cascades = {name: Cascade(net, policy) for name, policy in rules.items()}
    in_bf16 = {f"{PLAIN}, in bf16": Cascade(plain, ThresholdPolicy(math.inf), dtype=torch.bfloat16)}
    if _ALSO_IN_BF16 in rules:
        in_bf16[f"{_ALSO_IN_BF16}, in bf16"] = Cascade(net, rules[_ALSO_IN_BF16], dtype=torch.bfloat16)
    contenders: dict[str, Callable[[Tensor], object]] = {PLAIN: bare, WHOLE: whole, **cascades, **in_bf16}
    results = {name: [cascade(images) for images in batches] for name, cascade in (cascades | in_bf16).items()}
    predicted = {name: torch.cat([part.predicted for part in parts]).cpu() for name, parts in results.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    stages: list[Tensor] = []
    with torch.inference_mode():
        for name, forward in ((PLAIN, bare), (WHOLE, whole)):
            predicted[name] = torch.cat([forward(images)[-1].argmax(-1) for images in batches]).cpu()
        for repeat in range(repeats + 1):
            of_stages = stage_seconds(whole, batches, device).sum(0)
            times = {name: timed(partial(_over, batches, contender), device) for name, contender in contenders.items()}
            if repeat:  # the first has warmed up
                stages.append(of_stages)
                for name, (value, _) in times.items():
                    seconds[name].append(value)
    return Timing(
        batch_size=batch_size,
        num_images=len(split),
        seconds={name: torch.tensor(values, dtype=torch.float64) for name, values in seconds.items()},
        stage_seconds=torch.stack(stages),
        predicted=predicted,
        exit_index={name: torch.cat([part.exit_index for part in results[name]]).cpu() for name in cascades},
        labels=split.labels.cpu(),
        costs=costs,
    )


def _over(batches: Sequence[Tensor], work: Callable[[Tensor], object]) -> None:
    for images in batches:
        work(images)


def allowed_by_stages(stages: Tensor, exit_index: Tensor) -> Tensor:
    """Stage times (R, E) and exits (N,) -> (R,) the speed-up if stages cost an image what they do in full batches."""
    still_in = (exit_index[None] >= torch.arange(stages.shape[1])[:, None]).double().mean(1)
    return stages.sum(1) / (stages @ still_in)


def summary(timing: Timing) -> pd.DataFrame:
    """One row per contender."""
    rows = []
    for name, seconds in timing.seconds.items():
        speed_up = timing.seconds[WHOLE] / seconds  # repeat by repeat: both met the same machine
        row = {
            "": name,
            "images/s": f"{timing.num_images / seconds.median():,.0f}",
            "speed-up": f"{speed_up.median():.2f} ({speed_up.min():.2f} to {speed_up.max():.2f})",
            "over plain": f"{(timing.seconds[PLAIN] / seconds).median():.2f}",
        }
        if name in timing.exit_index:
            exits = timing.exit_index[name]
            allowed = allowed_by_stages(timing.stage_seconds, exits)
            row["stages allow"] = f"{allowed.median():.2f}"
            row["reached"] = f"{(speed_up / allowed).median():.2f}"
            row["multiply-adds allow"] = f"{timing.costs[-1] / timing.costs[exits].mean():.2f}"
        if timing.num_images >= _ENOUGH_TO_JUDGE:
            row["accuracy"] = f"{(timing.predicted[name] == timing.labels).double().mean():.2%}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("").set_index("")


def sweep_report(predictions: Predictions, repeats: int) -> str:
    """Report how long an accuracy-cost curve takes, in one sentence."""
    thresholds = torch.linspace(0, 1, 1000)
    sweep, cpu = partial(accuracy_cost_curve, predictions, thresholds), torch.device("cpu")
    seconds = [timed(sweep, cpu)[0] for _ in range(repeats + 1)]
    median = torch.tensor(seconds[1:]).median()  # the first has warmed up
    return (
        f"Accuracy and cost of 1,000 thresholds on {len(predictions.labels):,} images and {predictions.num_exits} "
        f"exits, from saved predictions: {1000 * median:.0f} ms (median of {repeats})."
    )


def machine(device: torch.device) -> str:
    """Describe the machine in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        name += ", float32 convolutions in TF32"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{device.type} ({name}), {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        "Medians, and in brackets the range over the repeats."
    )


if __name__ == "__main__":
    main()
