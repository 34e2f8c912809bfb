"""Images per second and accuracy, with and without early exits, on each engine: `python -m tools.benchmarks.cascade`.

All contenders take turns on the same images in one run, so that a busy machine slows all alike; figures are medians
over the repeats, in brackets their range. On each engine and precision there are:

- the plain network, without early exits and heads, run without any of our checks;
- a smaller static network, plain as well;
- the cascade at half of the multiply-adds, its thresholds chosen on validation predictions of that engine;
- the cascade at half of the seconds, as that engine takes them at that batch size;
- both for a network with many exits, on a few of the engines.

"over plain" compares with the plain network on the same engine in the same precision, repeat by repeat; "over eager"
with the plain network as PyTorch runs it in float32: norms folded, channels last, inference mode. "of the limit"
compares with what the measured times of the stages allow: each weighted by the share of images that still come to it.

Results are written after each batch size: a run that ends early leaves those it has.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from eeutils.analysis.costs import measure_head_seconds, measure_seconds, now, stage_seconds
from eeutils.analysis.decisions import decide
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.data import ImageData, load_data
from eeutils.engines import PreparedNet
from eeutils.engines.registry import find_engine
from eeutils.errors import message_instead_of_traceback
from eeutils.files import atomic_path, write_text
from eeutils.models import drop_exits, prepared_for_inference
from eeutils.plots import use_style
from eeutils.training import choose_device
from eeutils.weights import load_weights, weight_entry
from tools.benchmarks.report import machine, publish, report_path
from tools.figures import log_axis
from tools.tables import frame_as_markdown

BUDGET = 0.5
EAGER = "PyTorch fp32"
_say = partial(print, file=sys.stderr, flush=True)
PLAIN = "plain"


@dataclass(frozen=True)
class Benchmark:
    """Options: what to measure, and how.

    Attributes:
        weights: the network with early exits; without them it is the plain network.
        smaller: a smaller network, of which the last exit alone is used.
        many_exits, many_exits_on: a network with many exits, and the engines that run it.
        engines: each with its precision; those that cannot run here are left out.
        device: "cpu" or "cuda".
        batch_sizes: by default 1 and 256, on a GPU 1 and 4096.
        images: timed where batches are larger than 1; a fifth of them one by one.
        repeats: of everything; one more warms up and is not counted.
        judged: test images that accuracy is taken on; by default all.
        out: the report, beside it the figure (.png) and all rows (.csv); by default in results/.
    """

    weights: str = "resnet18_3exits-conv+conv+spp-cifar10-w32"
    smaller: str | None = "resnet18_3exits-conv+conv+spp-cifar10-w24"
    many_exits: str | None = "resnet18_sdn-mixed-cifar10-w16"
    many_exits_on: tuple[str, ...] = ("torch fp32", "onnxruntime fp32", "openvino fp32", "openvino int8")
    engines: tuple[str, ...] = (
        "torch fp32",
        "torch bf16",
        "compile fp32",
        "compile bf16",
        "onnxruntime fp32",
        "onnxruntime int8",
        "openvino fp32",
        "openvino bf16",
        "openvino int8",
    )
    device: str = "cpu"
    batch_sizes: tuple[int, ...] | None = None
    images: int = 1024
    repeats: int = 5
    judged: int | None = None
    out: Path | None = None


@dataclass
class Contender:
    """A network on an engine.

    Attributes:
        network: its name, plain networks with "plain" before it.
        engine: with its precision.
        answer: normalised images -> anything.
        against: the plain network that it is compared with.
        accuracy: on the judged test images.
        ready, exit_index: of a cascade: its stages, and where the judged images leave.
        seconds, limits: one a repeat: of each batch, and of all batches what the stages allow.
    """

    network: str
    engine: str
    answer: Callable[[Tensor], object]
    against: str
    accuracy: float
    ready: PreparedNet | None = None
    exit_index: Tensor | None = None
    seconds: list[list[float]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Measure; print the report and write it, the rows and the figure."""
    options = tyro.cli(Benchmark, prog="python -m tools.benchmarks.cascade", description=__doc__, args=args)
    out = options.out or report_path("benchmark", options.device)
    for report, rows in run(options):
        publish(report, out)
        write_text(out.with_suffix(".csv"), rows.to_csv(index=False))
        with atomic_path(out.with_suffix(".png")) as temporary:
            plot(rows).savefig(temporary, format="png", bbox_inches="tight")


def run(options: Benchmark) -> Iterator[tuple[str, pd.DataFrame]]:
    """After each batch size, the report in Markdown so far, and a row for each contender and batch size."""
    device = choose_device(options.device)
    data = load_data(weight_entry(options.weights).data)
    if options.judged is not None:
        data = replace(data, test=data.test.take(slice(0, options.judged)))
    networks = []
    for engine in filter(available, options.engines):
        _say(f"{engine}: convert the networks and judge their exits")
        networks += networks_on(engine, options, data, device)
    exits = [exit_row(each) for each in networks if each.ready.num_exits > 1]
    exits = f"**Accuracy of every exit**\n\n{frame_as_markdown(pd.DataFrame(exits).set_index('network'))}\n"
    parts, rows = [f"On {machine(device)}\n"], []
    for size in options.batch_sizes or ((1, 4096) if device.type == "cuda" else (1, 256)):
        contenders = [eager(options.weights, data, device)]
        for each in networks:
            _say(f"batches of {size}: {each.engine}: {each.name}")
            contenders += contenders_of(each, data, size)
        images = data.test.take(slice(0, max(options.images // 5 if size == 1 else options.images, size)))
        batches = [batch for batch, _ in images.batches(size, device)]
        time_all(contenders, batches, options.repeats)
        rows.append(summary(contenders, size, sum(map(len, batches))))
        shown = rows[-1].drop(columns=["batch", "images_per_second"] + ([] if size == 1 else ["p50 / p95 / p99 ms"]))
        parts.append(f"**Batches of {size}**\n\n{frame_as_markdown(shown.set_index('network'))}\n")
        yield "\n".join([*parts, exits]), pd.concat(rows, ignore_index=True)


def available(engine: str) -> bool:
    """Return whether `engine`, with its precision, can be measured here."""
    name, precision = engine.split()
    try:
        known = precision in find_engine(name).precisions
    except ModuleNotFoundError:
        return False
    flags = Path("/proc/cpuinfo")
    has_bf16 = flags.exists() and ("avx512_bf16" in (text := flags.read_text()) or "amx_bf16" in text)
    return known and (precision != "bf16" or has_bf16)


@dataclass(frozen=True)
class Network:
    """A network ready on an engine, with its predictions of test images and, if it has early exits, of validation."""

    name: str
    engine: str
    ready: PreparedNet
    test: Predictions
    val: Predictions | None = None


def networks_on(engine: str, options: Benchmark, data: ImageData, device: torch.device) -> Iterator[Network]:
    """Every network on `engine`: the cascades' under their names, without early exits as "plain ..."."""
    name, precision = engine.split()
    calibration = data.val if precision == "int8" else None
    nets = {}
    for weights in (options.weights, options.smaller, options.many_exits if engine in options.many_exits_on else None):
        if weights:
            net = load_weights(weights)
            nets[f"{PLAIN} {weights}"] = drop_exits(net, net.exit_after[:-1])
            if weights != options.smaller:
                nets[weights] = net
    for title, net in nets.items():
        ready = PreparedNet(net, name, precision=precision, device=device, calibration=calibration)
        val = predict(ready, data.val) if ready.num_exits > 1 else None
        yield Network(title, engine, ready, predict(ready, data.test), val)


def eager(weights: str, data: ImageData, device: torch.device) -> Contender:
    """The plain network as PyTorch runs it."""
    net = load_weights(weights)
    plain = prepared_for_inference(drop_exits(net, net.exit_after[:-1])).to(device)
    accuracy = float(predict(plain, data.test).accuracy[-1])
    return Contender(f"{PLAIN} {weights}", EAGER, torch.inference_mode()(plain.forward), f"{PLAIN} {weights}", accuracy)


def contenders_of(network: Network, data: ImageData, size: int) -> Iterator[Contender]:
    """The plain network, or its cascades at half of the multiply-adds and, in batches of `size`, of the seconds."""
    name, engine, ready = network.name, network.engine, network.ready
    if network.val is None:
        yield Contender(name, engine, ready.logits, name, float(network.test.accuracy[-1]))
        return
    seconds = measure_seconds(ready, data.val, batch_size=size)
    heads = measure_head_seconds(ready, data.val, seconds, batch_size=size)
    timed = replace(network.val, costs=seconds, head_costs=heads)
    for unit, table in {"multiply-adds": network.val, "time": timed}.items():
        if table.relative_costs[0] <= BUDGET:
            policy = choose_thresholds(table, budget=BUDGET).policy
            came, cascade = decide(network.test, policy), Cascade(ready, policy)
            title, against = f"{name}, half of the {unit}", f"{PLAIN} {name}"
            yield Contender(title, engine, cascade, against, came.accuracy, ready, came.exit_index)


def time_all(contenders: Sequence[Contender], batches: Sequence[Tensor], repeats: int) -> None:
    """Time every contender on the batches, taking turns; the first round warms up."""
    device, num_images = batches[0].device, sum(map(len, batches))
    some = batches[: -(-len(batches) // 4)]  # the limit takes fewer
    part = sum(map(len, some)) / num_images
    for repeat in range(repeats + 1):
        _say(f"repeat {repeat} of {repeats}" if repeat else f"warm up {len(contenders)} contenders")
        for each in contenders:
            marks = [now(device)]
            for images in batches:
                each.answer(images)
                marks.append(now(device))
            if repeat:
                each.seconds.append([end - start for start, end in pairwise(marks)])
                if each.ready is not None:
                    stages = stage_seconds(each.ready, some).sum(0) / part
                    still_in = (each.exit_index[:num_images] >= torch.arange(len(stages))[:, None]).double().mean(1)
                    each.limits.append(float(stages @ still_in))


def summary(contenders: Sequence[Contender], size: int, num_images: int) -> pd.DataFrame:
    """One row a contender."""
    totals = {(each.network, each.engine): torch.tensor([sum(times) for times in each.seconds]) for each in contenders}
    baseline = next((seconds for (_, engine), seconds in totals.items() if engine == EAGER), None)
    rows = []
    for each in contenders:
        seconds, latencies = totals[each.network, each.engine], torch.tensor(each.seconds).flatten() * 1000
        percentiles = latencies.quantile(torch.tensor([0.5, 0.95, 0.99]))
        row = {
            "network": each.network,
            "engine": each.engine,
            "batch": size,
            "images_per_second": num_images / float(seconds.median()),
            "images/s": _with_range(num_images / seconds, ",.0f"),
            "over plain": _with_range(totals[each.against, each.engine] / seconds, ".2f"),
            "over eager": "" if baseline is None else f"{(baseline / seconds).median():.2f}",
            "of the limit": f"{(torch.tensor(each.limits) / seconds).median():.2f}" if each.limits else "",
            "p50 / p95 / p99 ms": " / ".join(f"{value:.2f}" for value in percentiles.tolist()),
            "accuracy": f"{each.accuracy:.2%}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _with_range(values: Tensor, form: str) -> str:
    return f"{values.median():{form}} ({values.min():{form}} to {values.max():{form}})"


def exit_row(network: Network) -> dict[str, str]:
    """Accuracy of each exit."""
    accuracy = {f"exit {index + 1}": f"{share:.2%}" for index, share in enumerate(network.test.accuracy.tolist())}
    return {"network": network.name, "engine": network.engine} | accuracy


def plot(rows: pd.DataFrame) -> Figure:
    """Accuracy against images per second, all rows: plain networks as crosses, cascades as dots."""
    use_style()
    sizes = rows["batch"].unique()
    figure, axes = plt.subplots(1, len(sizes), figsize=(6 * len(sizes), 4.5), sharey=True, squeeze=False)
    engines = list(rows["engine"].unique())
    for ax, size in zip(axes[0], sizes, strict=True):
        for row in rows[rows["batch"] == size].to_dict("records"):
            marker = "x" if row["network"].startswith(PLAIN) else "o"
            accuracy = float(row["accuracy"].rstrip("%"))
            color = f"C{engines.index(row['engine'])}"
            ax.scatter(row["images_per_second"], accuracy, marker=marker, color=color)
        ax.set(xlabel="images/s", title=f"batches of {size}")
        log_axis(ax)
    axes[0][0].set_ylabel("test accuracy (%)")
    keys = [("s", f"C{index}") for index in range(len(engines))] + [("x", "black"), ("o", "black")]
    handles = [plt.Line2D([], [], marker=marker, linestyle="", color=color) for marker, color in keys]
    labels = [*engines, "plain network", "cascade"]
    axes[0][-1].legend(handles, labels, fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main()
