"""Train a network from a shell: `python -m eeutils.train slim --model resnet18_3exits --pool spp --width 16`.

The first word is a recipe (`eeutils.training.recipe`); every field of it can be changed by an option.
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
from safetensors import SafetensorError
from safetensors.torch import save_file

from eeutils.analysis.predictions import predict
from eeutils.data import ImageData, load_data
from eeutils.files import atomic_path
from eeutils.models import MultiExitNet, create_model
from eeutils.training import History, TrainConfig, choose_device, fit, list_recipes, recipe


@dataclass(frozen=True)
class TrainingRun:
    """Network, data, recipe, and where the results go.

    Attributes:
        model: a network of `eeutils.models.list_models()`.
        pool: how every exit pools its feature map.
        width: channels of the first layer; 64 is the published network.
        stem: for small images ("cifar") or large ones ("imagenet").
        exit_after: units that early exits follow, instead of the network's own choice.
        data: a data set of `eeutils.data.list_data()`.
        out: folder for checkpoint, weights, history and report; by default runs/<model>-<pool>-<data>-w<width>-s<seed>.
        device: "auto" takes a GPU if there is one.
        train: the recipe.
    """

    model: str = "resnet18_3exits"
    pool: str = "avg"
    width: int = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    exit_after: tuple[int, ...] | None = None
    data: str = "cifar10"
    out: Path | None = None
    device: str = "auto"
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        places = "" if self.exit_after is None else "-e" + "+".join(map(str, self.exit_after))
        name = f"{self.model}{places}-{self.pool}-{self.data}-w{self.width}-s{self.train.seed}"
        return self.out or Path("runs") / name


def main(args: list[str] | None = None) -> None:
    """Parse the command line and train; a wrong value ends with its message, not with a traceback."""
    choices = {name: (f"{name} recipe", TrainingRun(train=recipe(name))) for name in list_recipes()}
    run = tyro.extras.overridable_config_cli(choices, prog="python -m eeutils.train", args=args)
    try:
        train(run)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # fit has said what is kept
        sys.exit(130)


def train(run: TrainingRun) -> None:
    """Train one network, or go on with an interrupted run, and write everything to `run.folder`."""
    device = choose_device(None if run.device == "auto" else run.device)
    with torch.device("meta"):
        _build(run)  # a wrong name is found out before anything is downloaded
    data = load_data(run.data)
    torch.manual_seed(run.train.seed)
    net = _build(run, num_classes=len(data.classes), in_channels=data.train.images.shape[1])
    history = fit(net, data, run.train, checkpoint=run.folder / "checkpoint.pt", device=device)
    history.save_csv(run.folder / "history.csv")
    with atomic_path(run.folder / "weights.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, temporary)
    report = _report(run, net, data, history, device)
    with atomic_path(run.folder / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, default=str) + "\n")
    print(json.dumps(report["test_accuracy"]), f"on test; see {run.folder}")


def _build(run: TrainingRun, **shape: int) -> MultiExitNet:
    places = {} if run.exit_after is None else {"exit_after": run.exit_after}
    return create_model(run.model, width=run.width, pool=run.pool, stem=run.stem, **places, **shape)


def _report(run: TrainingRun, net: MultiExitNet, data: ImageData, history: History, device: torch.device) -> dict:
    test = predict(net, data.test, device=device)
    return {
        "command": "python -m eeutils.train " + shlex.join(sys.argv[1:]),
        "run": asdict(run),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} thread(s)",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "seconds": round(sum(row["seconds"] for row in history.rows), 1),
        "images_per_second": round(history.frame()["images_per_second"].median(), 1),
        "test_accuracy": [round(share, 4) for share in test.correct.double().mean(1).tolist()],
        "macs": test.costs.tolist(),
    }


if __name__ == "__main__":
    main()
