"""Images per second and accuracy, with and without early exits, on each engine: `python -m tools.benchmarks.cascade`.

All contenders take turns on the same images in one run, so that a busy machine slows all alike; figures are medians
over the repeats, in brackets their range. On each engine and precision there are:

- the plain network, without early exits and heads, run without any of our checks;
- a smaller static network, plain as well;
- the cascade at half of the multiply-adds, its thresholds chosen on validation predictions of that engine;
- the cascade at half of the seconds, as that engine takes them at that batch size;
- both for a network with many exits.

"over plain" compares with the plain network on the same engine in the same precision, repeat by repeat; "over eager"
with the plain network as PyTorch runs it in float32: norms folded, channels last, inference mode. "of the limit"
compares with what the measured times of the stages allow: each weighted by the share of images that still come to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from eeutils.analysis.costs import measure_seconds, now, stage_seconds
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.data import ImageData, load_data
from eeutils.engines import PreparedNet
from eeutils.engines.registry import find_engine
from eeutils.errors import message_instead_of_traceback
from eeutils.files import atomic_path, write_text
from eeutils.models import MultiExitNet, drop_exits, prepared_for_inference
from eeutils.plots.style import use_style
from eeutils.training import choose_device
from eeutils.weights import load_weights, weight_entry
from tools.benchmarks.report import machine, publish, report_path
from tools.tables import frame_as_markdown

BUDGET = 0.5
EAGER = "PyTorch fp32"
PLAIN = "plain"


@dataclass(frozen=True)
class Benchmark:
    """Options: what to measure, and how.

    Attributes:
        weights: the network with early exits; without them it is the plain network.
        smaller: a smaller network, of which the last exit alone is used.
        many_exits: a network with many exits.
        engines: each with its precision; those that are not installed, or whose precision this machine does not know,
            are left out.
        device: "cpu" or "cuda".
        batch_sizes: by default 1 and 256, on a GPU 1 and 4096.
        images: timed where batches are larger than 1; a tenth of them one by one.
        repeats: of everything; one more warms up and is not counted.
        judged: test images that accuracy is taken on; by default all.
        out: the report; beside it go the figure (.png) and all rows (.csv). By default results/benchmark.md, on a GPU
            results/benchmark-cuda.md.
    """

    weights: str = "resnet18_3exits-conv+conv+spp-cifar10-w32"
    smaller: str | None = "resnet18_3exits-conv+conv+spp-cifar10-w24"
    many_exits: str | None = "resnet18_sdn-mixed-cifar10-w16"
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
    images: int = 2048
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
    seconds: list[list[float]] | None = None
    limits: list[float] | None = None


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Measure; print the report and write it, the rows and the figure."""
    options = tyro.cli(Benchmark, prog="python -m tools.benchmarks.cascade", description=__doc__, args=args)
    out = options.out or report_path("benchmark", options.device)
    report, rows = run(options)
    publish(report, out)
    write_text(out.with_suffix(".csv"), rows.to_csv(index=False))
    with atomic_path(out.with_suffix(".png")) as temporary:
        plot(rows).savefig(temporary, format="png", bbox_inches="tight")


def run(options: Benchmark) -> tuple[str, pd.DataFrame]:
    """The report in Markdown, and a row for each contender and batch size."""
    device = choose_device(options.device)
    data = load_data(weight_entry(options.weights).data)
    judged = data.test if options.judged is None else data.test.take(slice(0, options.judged))
    engines = [engine for engine in options.engines if available(engine)]
    sizes = options.batch_sizes or ((1, 4096) if device.type == "cuda" else (1, 256))
    parts, rows, exits = [f"On {machine(device)}\n"], [], []
    timed_data = replace(data, test=judged)
    prepared = {engine: networks_on(engine, options, data, device) for engine in engines}
    tables = {
        engine: {name: predict(ready, data.val) for name, ready in nets.items() if ready.num_exits > 1}
        for engine, nets in prepared.items()
    }
    for size in sizes:
        contenders = [
            each
            for engine in engines
            for each in contenders_on(engine, prepared[engine], tables[engine], timed_data, size)
        ]
        contenders.insert(0, eager(options.weights, timed_data, device))
        images = judged.take(slice(0, max(options.images // 10 if size == 1 else options.images, size)))
        batches = [batch for batch, _ in images.batches(size, device)]
        time_all(contenders, batches, options.repeats)
        table = summary(contenders, size, sum(map(len, batches)))
        rows.append(table)
        shown = table.drop(columns=["batch", "images_per_second"] + ([] if size == 1 else ["p50 / p95 / p99 ms"]))
        parts.append(f"**Batches of {size}**\n\n{frame_as_markdown(shown.set_index('network'))}\n")
    for engine, nets in prepared.items():
        exits += [exit_row(engine, name, predict(nets[name], judged)) for name in tables[engine]]
    parts.append(f"**Accuracy of every exit**\n\n{frame_as_markdown(pd.DataFrame(exits).set_index('network'))}\n")
    return "\n".join(parts), pd.concat(rows, ignore_index=True)


def available(engine: str) -> bool:
    """Return whether `engine`, with its precision, can be measured here."""
    name, precision = engine.split()
    try:
        known = precision in find_engine(name).precisions
    except ModuleNotFoundError:
        return False
    return known and (precision != "bf16" or _knows_bf16())


def _knows_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and ("avx512_bf16" in (text := flags.read_text()) or "amx_bf16" in text)


def networks_on(engine: str, options: Benchmark, data: ImageData, device: torch.device) -> dict[str, PreparedNet]:
    """Every network, ready on `engine`: the cascades' under their names, without early exits as "plain ..."."""
    name, precision = engine.split()
    calibration = data.val if precision == "int8" else None

    def ready(net: MultiExitNet) -> PreparedNet:
        return PreparedNet(net, name, precision=precision, device=device, calibration=calibration)

    nets = {}
    for weights in (options.weights, options.many_exits):
        if weights:
            net = load_weights(weights)
            nets |= {f"{PLAIN} {weights}": ready(drop_exits(net, net.exit_after[:-1])), weights: ready(net)}
    if options.smaller:
        net = load_weights(options.smaller)
        nets[f"{PLAIN} {options.smaller}"] = ready(drop_exits(net, net.exit_after[:-1]))
    return nets


def eager(weights: str, data: ImageData, device: torch.device) -> Contender:
    """The plain network as PyTorch runs it."""
    net = load_weights(weights)
    plain = prepared_for_inference(drop_exits(net, net.exit_after[:-1])).to(device)
    accuracy = float(predict(plain, data.test).accuracy[-1])
    return Contender(f"{PLAIN} {weights}", EAGER, torch.inference_mode()(plain.forward), f"{PLAIN} {weights}", accuracy)


def contenders_on(
    engine: str, nets: dict[str, PreparedNet], tables: dict[str, Predictions], data: ImageData, size: int
) -> list[Contender]:
    """Plain networks and cascades on `engine`, each judged on the test images."""
    contenders = []
    for name, ready in nets.items():
        if name not in tables:
            accuracy = float(predict(ready, data.test, batch_size=256).accuracy[-1])
            contenders.append(Contender(name, engine, ready.logits, name, accuracy))
            continue
        seconds = measure_seconds(ready, data.val, batch_size=size)
        for unit, table in {"multiply-adds": tables[name], "time": replace(tables[name], costs=seconds)}.items():
            if table.relative_costs[0] <= BUDGET:
                cascade = Cascade(ready, choose_thresholds(table, budget=BUDGET).policy)
                came = cascade.run(data.test)
                each = Contender(f"{name}, half of the {unit}", engine, cascade, f"{PLAIN} {name}", came.accuracy)
                contenders.append(replace(each, ready=ready, exit_index=came.exit_index))
    return contenders


def time_all(contenders: Sequence[Contender], batches: Sequence[Tensor], repeats: int) -> None:
    """Time every contender on the batches, taking turns; the first round warms up."""
    device, num_images = batches[0].device, sum(map(len, batches))
    for each in contenders:
        each.seconds, each.limits = [], []
    for repeat in range(repeats + 1):
        for each in contenders:
            marks = [now(device)]
            for images in batches:
                each.answer(images)
                marks.append(now(device))
            if repeat:
                each.seconds.append([end - start for start, end in pairwise(marks)])
                if each.ready is not None:
                    stages = stage_seconds(each.ready, batches).sum(0)
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


def exit_row(engine: str, name: str, predictions: Predictions) -> dict[str, str]:
    """Accuracy of each exit on `engine`."""
    accuracy = {f"exit {index + 1}": f"{share:.2%}" for index, share in enumerate(predictions.accuracy.tolist())}
    return {"network": name, "engine": engine} | accuracy


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
        ax.set(xscale="log", xlabel="images/s", title=f"batches of {size}")
    axes[0][0].set_ylabel("test accuracy (%)")
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=f"C{index}") for index in range(len(engines))]
    kinds = [plt.Line2D([], [], marker=marker, linestyle="", color="black") for marker in "xo"]
    axes[0][-1].legend(handles + kinds, [*engines, "plain network", "cascade"], fontsize="small", loc="lower left")
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main()
