"""Train and publish what the registry of weights lacks: `python -m tools.train_missing --missing --minutes 25`.

The plan below says which networks there should be, most valuable first. Each is one command of `eeutils.train`; this
program runs those whose weights are missing, or were made by another command (a shorter one, as a rule), one after
another, until the time is up, and publishes each one that finishes. A run cut short is resumed by the next call.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import tyro

from eeutils.device import choose_device
from eeutils.errors import message_instead_of_traceback
from eeutils.files import exclusive
from eeutils.train import TrainingRun, parsed
from eeutils.weights import Registry, default_registry, list_weights
from eeutils.weights.registry import REGISTRY_FILE
from tools.publish import entry_name, planned_entry, publish
from tools.registry_file import save_registry, with_entry
from tools.tables import markdown_table
from tools.weights_page import write_readme

# Too little to get anything done: starting takes longer.
_LEAST_SECONDS = 30
# Of those that `tools/benchmarks/ablation.py` compares.
_BEST_HEADS = "conv+conv+spp"
# For networks to use rather than to compare. After 16 epochs without cutout the loss of width 32 was 0.14 on training
# images and still falling, with 91.6 % on validation: room for both.
_LONG = "--train.epochs {} --train.augmentation.cutout 12"
# And whether they are too large for their weights to ship, all three of each.
_SDN_NETWORKS = {"resnet56": False, "vgg16": True, "mobilenet": True, "wideresnet32_4": True}


@dataclass(frozen=True)
class PlannedRun:
    """One network of the training plan.

    Attributes:
        arguments: of `python -m eeutils.train`.
        wants_gpu: on a few CPU cores it would take days.
        results_only: what it predicts ships, its weights do not: all together may not take more than 200 MB.
    """

    arguments: str
    wants_gpu: bool = False
    results_only: bool = False

    @property
    def command(self) -> str:
        """The training command."""
        return f"python -m eeutils.train {self.arguments}"

    @property
    def commands(self) -> str:
        """The commands that train and publish it."""
        publishing = f"python -m tools.publish {self.run.folder}"
        return f"{self.command} && {publishing}" + " --results-only" * self.results_only

    @cached_property
    def run(self) -> TrainingRun:
        """The parsed command."""
        return parsed(shlex.split(self.arguments))

    @cached_property
    def name(self) -> str:
        """Name of its weights."""
        return entry_name(asdict(self.run))


def plan() -> tuple[PlannedRun, ...]:
    """All networks to train, most valuable first."""
    return (*_wide(), *_slim(), *_shallow_deep())


def _wide() -> Iterator[PlannedRun]:
    """ResNet18 at full width: plain, the kinds of UPF-DL-2020 tuned from it, and earlier exits for small budgets."""
    yield PlannedRun(
        "muon --model resnet18 --pool avg --width 64 --train.epochs 12 --train.filter-learning-rate 0.08"
        " --train.momentum 0.85 --train.loss.label-smoothing 0.2 --train.augmentation.translate 4"
        " --train.small-images 0.6 --train.precision bf16"
    )
    # Equal weights and the filters' rate are the best of short trials at width 16; with the heads' rate from there the
    # loss of full width rose. Labels are not smoothed, which would lower confidences.
    tuned = (
        "--width 64 --start-from resnet18-avg-cifar10 --train.epochs 3 --train.filter-learning-rate 0.02"
        " --train.momentum 0.85 --train.loss.weights equal --train.learning-rate 0.02 --train.bias-learning-rate 160"
        " --train.augmentation.translate 4 --train.precision bf16"
    )
    for pool in ("spp", "avg"):
        for exits in (3, 2):
            yield PlannedRun(f"muon --model resnet18_{exits}exits --pool {pool} {tuned}")
    earlier = f"resnet18_3exits --exit-after 2 4 --pool {_BEST_HEADS}"  # at 27 % and 52 % of the multiply-adds
    yield PlannedRun(f"modern --model {earlier} --width 64", wants_gpu=True, results_only=True)


def _slim() -> Iterator[PlannedRun]:
    """Networks for a few CPU cores: minutes each at width 16."""
    airnet = "muon --model airnet_3exits{} --train.precision bf16 --train.epochs {}"
    regularized = "--train.loss.label-smoothing 0.2 --train.augmentation.translate 4 --train.augmentation.cutout 12"
    yield PlannedRun(f"{airnet.format('', 30)} {regularized}")
    yield PlannedRun(airnet.format(" --width 32", 16))  # as much compute as a ResNet18 of width 16
    slim = "slim --model {} --pool {} --width {} --train.precision bf16"
    yield PlannedRun(slim.format("resnet18", "avg", 16))
    for pool in ("spp", "avg"):
        for model in ("resnet18_3exits", "resnet18_2exits"):
            yield PlannedRun(slim.format(model, pool, 16))
    alone = "ic_only --model resnet18_sdn --pool mixed --width 16 --start-from resnet18-avg-cifar10-w16"
    yield PlannedRun(f"{alone} --train.precision bf16")
    for model, width in (("resnet18_sdn", "16"), ("vgg16_sdn", "16"), ("wideresnet32_4_sdn", "4 --train.epochs 36")):
        yield PlannedRun(slim.format(model, "mixed", f"{width} --train.loss.weights sdn"))
    yield PlannedRun(slim.format("resnet18_3exits", _BEST_HEADS, 16))
    for width, epochs in ((24, 50), (32, 80)):
        yield PlannedRun(slim.format("resnet18_3exits", _BEST_HEADS, f"{width} {_LONG.format(epochs)}"))
    # For budgets that the first of three exits alone would spend: one more, after the first block of all.
    long = _LONG.format("28 --train.learning-rate 0.05 --train.warmup 0.1")
    earlier = f"32 --start-from resnet18_3exits-{_BEST_HEADS}-cifar10-w32 {long}"
    yield PlannedRun(slim.format("resnet18 --exit-after 1 3 5", f"conv+{_BEST_HEADS}", earlier), results_only=True)
    for seed in (1, 2):
        for pool in ("spp", _BEST_HEADS):
            yield PlannedRun(slim.format("resnet18_3exits", pool, 16) + _seeded(seed))


def _shallow_deep() -> Iterator[PlannedRun]:
    """Shallow-Deep Networks at full size: the CNN, exits trained alone on it, and both together."""
    for net, results_only in _SDN_NETWORKS.items():
        start = f"runs/{net}-cifar10-s0" if results_only else f"{net}-cifar10"
        for arguments in (
            f"cnn_{net} --model {net}",
            f"ic_only --model {net}_sdn --pool mixed --start-from {start}",
            f"sdn_{net} --model {net}_sdn --pool mixed",
        ):
            yield PlannedRun(arguments, wants_gpu=True, results_only=results_only)


def _seeded(seed: int) -> str:
    return f" --train.seed {seed}" if seed else ""


@dataclass(frozen=True)
class Options:
    """Options: list the plan, or train what is missing.

    Attributes:
        missing: train what is missing.
        minutes: to spend on it.
        only: names to choose from, instead of all of the plan.
        everything: also what wants a GPU, where there is none.
    """

    missing: bool = False
    minutes: float = 25.0
    only: tuple[str, ...] = ()
    everything: bool = False


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """List the plan, or train what is missing of it."""
    options = tyro.cli(Options, prog="python -m tools.train_missing", description=__doc__, args=args)
    chosen = _chosen(options)
    if not options.missing:
        print(_listed(chosen, default_registry()))
        return
    failed = train_missing(chosen, options.minutes, everything=options.everything)
    if failed:
        sys.exit(f"error: these runs failed, see above: {failed}")


def train_missing(runs: tuple[PlannedRun, ...], minutes: float, *, everything: bool = False) -> list[str]:
    """Train and publish the missing ones of `runs`, in order, until the time is up.

    First they are all put into the registry as not trained, with their commands.

    Returns:
        the names of runs that ended with an error.
    """
    deadline = time.monotonic() + 60 * minutes
    record_plan(runs)
    failed = []
    for planned in runs:
        if _status(planned, default_registry()) == "trained":
            continue
        if obstacle := _obstacle(planned, everything):
            print(f"{planned.name}: left out, {obstacle}", flush=True)
            continue
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            print(f"{planned.name}: the {minutes:g} minutes are over; call again to go on", flush=True)
            break
        if not _train(planned, left):
            failed.append(planned.name)
    return failed


def record_plan(runs: tuple[PlannedRun, ...]) -> None:
    """Record `runs` in the registry as not trained, unless they are."""
    folder = default_registry().folder
    if folder is None:
        raise ValueError("this registry came with the package; train from a clone of the repository")
    with exclusive(folder / REGISTRY_FILE):
        registry = Registry.load(folder)
        for planned in runs:
            if _is_news(planned, registry):
                registry = with_entry(registry, planned_entry(asdict(planned.run), planned.commands))
        save_registry(registry)
        write_readme(registry)


def _chosen(options: Options) -> tuple[PlannedRun, ...]:
    runs = {planned.name: planned for planned in plan()}
    if unknown := sorted(set(options.only) - set(runs)):
        raise ValueError(f"unknown run {unknown[0]!r}; choose from {list(runs)}")
    return tuple(planned for name, planned in runs.items() if not options.only or name in options.only)


def _listed(runs: tuple[PlannedRun, ...], registry: Registry) -> str:
    rows = ([run.name, _status(run, registry), run.command] for run in runs)
    return markdown_table(["name", "status", "command"], rows)


def _status(planned: PlannedRun, registry: Registry) -> str:
    if planned.name not in registry.names or not registry.entry(planned.name).has_results:
        return "missing"
    arguments = tuple(shlex.split(planned.arguments))
    return "trained" if registry.entry(planned.name).training_arguments == arguments else "trained otherwise"


def _is_news(planned: PlannedRun, registry: Registry) -> bool:
    """Return True if the registry lacks the run, or records another command for it."""
    if planned.name not in registry.names:
        return True
    entry = registry.entry(planned.name)
    return entry.status == "not trained" and entry.command != planned.commands


def _is_at_hand(start: str) -> bool:
    """Return True if `start` names trained weights or a finished run."""
    return start in list_weights(default_registry()) or Path(start, "report.json").exists()


def _obstacle(planned: PlannedRun, everything: bool) -> str:
    """Reason not to start a run here; empty if there is none."""
    start = planned.run.start_from
    if start is not None and not _is_at_hand(start):
        return f"it starts from {start}, which is not trained"
    if planned.wants_gpu and not everything and choose_device().type == "cpu":
        return "there is no GPU; with --everything it is trained on the CPU all the same"
    return ""


def _train(planned: PlannedRun, seconds: float) -> bool:
    """Run the command for at most `seconds` and publish a finished run; False if it failed."""
    print(f"{planned.name}: {planned.command}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "eeutils.train", *shlex.split(planned.arguments)])
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # its checkpoint is whole whatever the moment
        process.wait()
        print(f"{planned.name}: the time is up; its finished epochs are kept, call again to go on", flush=True)
        return True
    except KeyboardInterrupt:  # the process has got it, too
        process.wait()
        raise
    if process.returncode:
        return False
    publish(planned.run.folder, default_registry(), results_only=planned.results_only)
    print(f"{planned.name}: {_achieved(planned.run.folder)}", flush=True)
    return True


def _achieved(folder: Path) -> str:
    """Accuracy and speed of a finished run, in words."""
    report = json.loads((folder / "report.json").read_text("utf-8"))
    accuracy = " / ".join(f"{share:.2%}" for share in report["test_accuracy"])
    speed = f"{report['images_per_second']:,.0f} images/s on {report['device']}"
    if report.get("share_of_peak") is not None:
        speed += f", {report['share_of_peak']:.0%} of the matrix peak measured there"
    return f"{accuracy} on test, {report['seconds'] / 60:.1f} minutes, {speed}"


if __name__ == "__main__":
    main()
