"""Train a network from a shell: `python -m eeutils.train slim --model resnet18_3exits --pool spp --width 16`.

The first word is a recipe (`eeutils.training.recipe`). Options change its fields, the network and the data:
`python -m eeutils.train slim --help`. An interrupted command, given again, resumes where it stopped. On several GPUs:
`torchrun --nproc-per-node 4 -m eeutils.train slim`.
"""

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from eeutils.analysis.overthinking import attack_success
from eeutils.analysis.predictions import predict
from eeutils.data import ImageData, Trigger, load_data, poisoned, stamped
from eeutils.device import device_name, matrix_peak, share_of_peak
from eeutils.errors import message_instead_of_traceback, require
from eeutils.files import save_tensors, write_text
from eeutils.models import MultiExitNet, copy_backbone, create_model, widen_backbone
from eeutils.models.registry import fitting_arguments
from eeutils.training import History, TrainConfig, choose_device, fit, list_recipes, recipe
from eeutils.training.parallel import Workers, workers_of_torchrun
from eeutils.training.preflight import autocast_dtype
from eeutils.weights import load_run, load_weights
from eeutils.weights.load import asked_arguments, read_report, run_name


@dataclass(frozen=True)
class TrainingRun:
    """Network, data, recipe, and folder of a run.

    Attributes:
        model: a network of `eeutils.models.list_models()`.
        pool: heads of the exits; here and below, the default is that of the network's builder.
        width: channels of the first layer.
        stem: for small images ("cifar") or large ones ("imagenet").
        exit_after: units that early exits follow.
        start_from: weights of `eeutils.list_weights()`, or the folder of a finished run, with the same backbone, which
            is copied, with its last exit if that is the same; other exits start at random. A backbone several times
            narrower is widened, and all exits start at random (`eeutils.models.widen_backbone`). Required to train
            exits only; with `--train.trained exits`, the backbone alone is copied, for the same classes or others.
        data: a dataset of `eeutils.data.list_data()`.
        poison_share: share of the training images of other classes that get the trigger and its class's label.
        trigger: the mark on poisoned images.
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
        """Folder for the results."""
        return self.out or Path("runs") / f"{run_name(asdict(self))}-s{self.train.seed}"


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Parse the command line and train; errors end in a message, without a traceback."""
    run = parsed(args)
    with workers_of_torchrun():
        train(run)


def parsed(args: list[str] | None = None) -> TrainingRun:
    """Parse a command line, by default that of this process."""
    choices = {name: _choice(name) for name in list_recipes()}
    return tyro.extras.overridable_config_cli(choices, prog="python -m eeutils.train", description=__doc__, args=args)


def _choice(name: str) -> tuple[str, TrainingRun]:
    """Return a recipe's line of `--help`, and its run with the network and the data that its name tells."""
    kind, _, net = name.removesuffix("_tinyimagenet").partition("_")
    model = {"cnn": net, "sdn": f"{net}_sdn", "muon": "airnet_3exits"}.get(kind, TrainingRun.model)
    data = next((data for data in ("tinyimagenet", "digits") if name.endswith(data)), TrainingRun.data)
    config = recipe(name)
    part = model if config.trained == "all" else "early exits of a trained network"
    text = f"{part} on {data}, {config.epochs} epochs in batches of {config.batch_size}"
    return text, TrainingRun(model=model, data=data, train=config)


def train(run: TrainingRun) -> None:
    """Train one network, or resume an interrupted run, and write the results to `run.folder`."""
    workers, device = Workers.of_this_run(), choose_device(run.device)
    has_backbone = run.train.trained == "all" or run.start_from is not None
    require(has_backbone, f"start_from must name a trained network to train only its {run.train.trained}, got None")
    with torch.device("meta"):
        _build(run)  # a wrong name fails before anything is downloaded
    data = load_data(run.data)
    if run.poison_share is not None:
        data = poisoned(data, run.trigger, run.poison_share, run.train.seed)
    shape = fitting_arguments(len(data.classes), data.image_shape)
    torch.manual_seed(run.train.seed)
    net = _build(run, **shape)
    if run.start_from is not None:
        donor = load_run(run.start_from) if Path(run.start_from).is_dir() else load_weights(run.start_from)
        _take_over(net, donor, run.train.trained)
    checkpoint, report = run.folder / "checkpoint.pt", run.folder / "report.json"
    try:
        history = fit(net, data, run.train, checkpoint=checkpoint, device=device)
    except (KeyboardInterrupt, SystemExit):
        if workers.is_first:
            print(f"interrupted; the same command resumes from {checkpoint}", file=sys.stderr)
        raise
    if not workers.is_first:
        return
    history.save_csv(run.folder / "history.csv")
    save_tensors(run.folder / "weights.safetensors", net.state_dict())
    if not report.exists() or report.stat().st_mtime_ns <= checkpoint.stat().st_mtime_ns:  # else it was only loaded
        content = _report(run, net, data, history, device, workers.world_size)
        write_text(report, json.dumps(content, indent=2, default=str) + "\n")
    print(json.dumps(read_report(run.folder)["test_accuracy"]), f"on test; see {run.folder}")


def _take_over(net: MultiExitNet, donor: MultiExitNet, trained: str) -> None:
    """Copy the donor's backbone, and its last exit unless that is trained anew; or widen a narrower backbone."""
    pairs = zip(net.units.parameters(), donor.units.parameters(), strict=False)  # the copiers check that they fit
    if trained == "all" and any(own.numel() > given.numel() for own, given in pairs):
        widen_backbone(net, donor)
    else:
        has_same = _last_exit_layers(net) == _last_exit_layers(donor)
        copy_backbone(net, donor, last_exit=trained == "early_exits" or (trained == "all" and has_same))


def _last_exit_layers(net: MultiExitNet) -> dict[str, torch.Size]:
    *_, last = net.exits.values()
    return {name: tensor.shape for name, tensor in last.state_dict().items()}


def _build(run: TrainingRun, **shape: int) -> MultiExitNet:
    arguments = asked_arguments(asdict(run))
    try:
        return create_model(run.model, **arguments, **shape)
    except TypeError as error:
        raise ValueError(f"model must take {arguments}, got {run.model!r}: {error}") from error


def _report(
    run: TrainingRun, net: MultiExitNet, data: ImageData, history: History, device: torch.device, world_size: int
) -> dict:
    test = predict(net, data.test, device=device)
    images_per_second = history.frame()["images_per_second"].median()
    share = None
    # Exits alone have a cheaper backward pass, small images a cheaper step.
    if run.train.trained == "all" and not run.train.small_images:
        peak = world_size * matrix_peak(device, autocast_dtype(run.train.precision, device))
        share = round(share_of_peak(float(test.costs[-1]), images_per_second, peak), 3)
    backdoor = {}
    if run.poison_share is not None:  # of marked test images of other classes, the share that an exit takes for target
        marked = predict(net, stamped(data.test, run.trigger), device=device)
        success = attack_success(marked, run.trigger.target)
        backdoor = {"attack_success": [round(share, 4) for share in success.tolist()]}
    launcher = "python" if world_size == 1 else f"torchrun --nproc-per-node {world_size}"
    return {
        "command": f"{launcher} -m eeutils.train {shlex.join(sys.argv[1:])}",
        "run": asdict(run),
        "device": device_name(device) if world_size == 1 else f"{world_size} x {device_name(device)}",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "seconds": round(sum(row["seconds"] for row in history.rows), 1),
        "images_per_second": round(images_per_second, 1),
        "share_of_peak": share,
        "test_accuracy": [round(share, 4) for share in test.accuracy.tolist()],
        "macs": test.costs.tolist(),
        **backdoor,
    }


if __name__ == "__main__":
    main()
