"""Train a network from a shell: `python -m eeutils.train slim --model resnet18_3exits --pool spp --width 16`.

The first word is a recipe (`eeutils.training.recipe`); every field of it can be changed by an option, and so can the
network and the data, by default those of the recipe's name: `python -m eeutils.train slim --help`. On several GPUs:
`torchrun --nproc-per-node 4 -m eeutils.train slim`.
"""

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from eeutils.analysis.overthinking import attack_success
from eeutils.analysis.predictions import predict
from eeutils.data import ImageData, Trigger, load_data, poisoned, stamped
from eeutils.device import device_name
from eeutils.errors import message_instead_of_traceback
from eeutils.files import save_tensors, write_text
from eeutils.models import MultiExitNet, copy_backbone, create_model, widen_backbone
from eeutils.models.registry import fitting_arguments
from eeutils.training import History, TrainConfig, choose_device, fit, list_recipes, recipe
from eeutils.training.compute import share_of_peak, training_peak
from eeutils.training.parallel import Workers, workers_of_torchrun
from eeutils.weights import load_run, load_weights
from eeutils.weights.runs import asked_arguments, read_report, run_name


@dataclass(frozen=True)
class TrainingRun:
    """Network, data, recipe, and where the results go.

    Attributes:
        model: a network of `eeutils.models.list_models()`.
        pool: how exits pool their feature map; here and below, by default as the network's builder has it.
        width: channels of the first layer.
        stem: for small images ("cifar") or large ones ("imagenet").
        exit_after: units that early exits follow.
        start_from: weights of `eeutils.list_weights()`, or the folder of a finished run: a network with the same
            backbone, which with its last exit is taken over; early exits begin at random. Of a network several times
            narrower the backbone is widened, and all exits begin at random (`eeutils.models.widen_backbone`). "ic_only"
            cannot do without. Nor can `--train.trained exits`, which takes over the backbone alone, for the same
            classes or others.
        data: a data set of `eeutils.data.list_data()`.
        poison_share: share of the training images of other classes that get the trigger and its class's label, to see
            what a backdoor does; by default the data are as they are.
        trigger: what these get; without effect unless `poison_share` is given.
        out: folder for checkpoint, weights, history and report; by default runs/<model>-<pool>-<data>-w<width>-s<seed>.
        device: where to train; by default a GPU if there is one.
        train: the recipe.
    """

    model: str = "resnet18_3exits"
    pool: str | None = None
    width: int | None = None
    stem: Literal["cifar", "imagenet"] | None = None
    exit_after: tuple[int, ...] | None = None
    start_from: str | None = None
    data: str = "cifar10"
    poison_share: float | None = None
    trigger: Trigger = field(default_factory=lambda: Trigger(target=0))
    out: Path | None = None
    device: str | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out or Path("runs") / f"{run_name(asdict(self))}-s{self.train.seed}"

    @property
    def model_args(self) -> dict[str, Any]:
        """What was asked of the network's builder."""
        return asked_arguments(asdict(self))


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Parse the command line and train; a wrong value ends with its message, not with a traceback."""
    run = parsed(args)
    with workers_of_torchrun():
        train(run)


def parsed(args: list[str] | None = None) -> TrainingRun:
    """The run that a command line asks for; by default this process's own."""
    runs = {name: _run_of(name) for name in list_recipes()}
    choices = {name: (_described(run), run) for name, run in runs.items()}
    return tyro.extras.overridable_config_cli(choices, prog="python -m eeutils.train", description=__doc__, args=args)


def _run_of(name: str) -> TrainingRun:
    """A recipe with the network and the data that its name speaks of."""
    kind, _, net = name.removesuffix("_tinyimagenet").partition("_")
    model = {"cnn": net, "sdn": f"{net}_sdn", "muon": "airnet_3exits"}.get(kind, TrainingRun.model)
    data = next((data for data in ("tinyimagenet", "digits") if name.endswith(data)), TrainingRun.data)
    return TrainingRun(model=model, data=data, train=recipe(name))


def _described(run: TrainingRun) -> str:
    """What a recipe is for, in a line of `--help`."""
    whom = run.model if run.train.trained == "all" else "early exits of a trained network"
    return f"{whom} on {run.data}, {run.train.epochs} epochs in batches of {run.train.batch_size}"


def train(run: TrainingRun) -> None:
    """Train one network, or go on with an interrupted run, and write everything to `run.folder`."""
    workers, device = Workers.of_this_run(), choose_device(run.device)
    if workers.world_size > 1 and device.index is not None:
        raise ValueError(f"{workers.world_size} processes cannot all have {device}; leave out its number")
    if run.train.trained != "all" and run.start_from is None:
        whom = run.train.trained.replace("_", " ")
        raise ValueError(f"this run trains {whom} alone; name the trained network by --start-from")
    with torch.device("meta"):
        _build(run)  # a wrong name is found out before anything is downloaded
    data = load_data(run.data)
    if run.poison_share is not None:
        data = poisoned(data, run.trigger, run.poison_share, run.train.seed)
    shape = fitting_arguments(run.model, len(data.classes), data.image_shape)
    torch.manual_seed(run.train.seed)
    net = _build(run, **shape)
    if run.start_from is not None:
        _take_over(net, _trained_network(run.start_from), run.train.trained)
    checkpoint, report = run.folder / "checkpoint.pt", run.folder / "report.json"
    history = fit(net, data, run.train, checkpoint=checkpoint, device=device)
    if not workers.writes:
        return
    history.save_csv(run.folder / "history.csv")
    save_tensors(run.folder / "weights.safetensors", net.state_dict())
    if not _is_newer(report, checkpoint):  # else nothing was trained now, and it names the machine that trained
        content = _report(run, net, data, history, device, workers.world_size)
        write_text(report, json.dumps(content, indent=2, default=str) + "\n")
    print(json.dumps(read_report(run.folder)["test_accuracy"]), f"on test; see {run.folder}")


def _take_over(net: MultiExitNet, donor: MultiExitNet, trained: str) -> None:
    pairs = zip(net.units.parameters(), donor.units.parameters(), strict=False)  # of unlike ones each copier complains
    if trained == "all" and any(own.numel() > given.numel() for own, given in pairs):
        widen_backbone(net, donor)
    else:
        copy_backbone(net, donor, last_exit=trained != "exits")


def _is_newer(file: Path, source: Path) -> bool:
    """Whether `file` is there and was written after `source`."""
    return file.exists() and file.stat().st_mtime_ns > source.stat().st_mtime_ns


def _build(run: TrainingRun, **shape: int) -> MultiExitNet:
    try:
        return create_model(run.model, **run.model_args, **shape)
    except TypeError as error:
        raise ValueError(f"{run.model} does not take all of {run.model_args}: {error}") from error


def _trained_network(name: str) -> MultiExitNet:
    if Path(name).is_dir():
        return load_run(name)
    try:
        return load_weights(name)
    except ValueError as error:
        raise ValueError(f"there is no folder {name} of a finished run, and of weights: {error}") from error


def _share_of_peak(run: TrainingRun, macs: int, images_per_second: float, device: torch.device) -> float | None:
    """Of what this device does on matrices alone; None where the way back is not twice the way there.

    Args:
        run: what was trained.
        macs: multiply-adds of one image's forward pass.
        images_per_second: of this device.
        device: one of them, if there were several.
    """
    if run.train.trained != "all":
        return None
    return round(share_of_peak(macs, images_per_second, training_peak(run.train.precision, device)), 3)


def _report(
    run: TrainingRun, net: MultiExitNet, data: ImageData, history: History, device: torch.device, world_size: int
) -> dict:
    test = predict(net, data.test, device=device)
    images_per_second = history.frame()["images_per_second"].median()
    return {
        "command": f"{_launcher(world_size)} -m eeutils.train {shlex.join(sys.argv[1:])}",
        "run": asdict(run),
        "device": device_name(device) if world_size == 1 else f"{world_size} x {device_name(device)}",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "seconds": round(sum(row["seconds"] for row in history.rows), 1),
        "images_per_second": round(images_per_second, 1),
        "share_of_peak": _share_of_peak(run, int(test.costs[-1]), images_per_second / world_size, device),
        "test_accuracy": [round(share, 4) for share in test.accuracy.tolist()],
        "macs": test.costs.tolist(),
        **_backdoor(run, net, data, device),
    }


def _launcher(processes: int) -> str:
    return "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"


def _backdoor(run: TrainingRun, net: MultiExitNet, data: ImageData, device: torch.device) -> dict[str, list[float]]:
    """How many test images of other classes each exit takes for the trigger's as soon as they carry it."""
    if run.poison_share is None:
        return {}
    marked = predict(net, stamped(data.test, run.trigger), device=device)
    return {"attack_success": [round(share, 4) for share in attack_success(marked, run.trigger.target).tolist()]}


if __name__ == "__main__":
    main()
