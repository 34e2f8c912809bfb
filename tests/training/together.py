"""What the processes of one run do together: `torchrun --nproc-per-node 2 together.py FOLDER`."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from eeutils.data import Augmentation, ImageData, load_data
from eeutils.models import MultiExitNet, create_exit, resnet18_3exits
from eeutils.training import TrainConfig, fit, loop, recipe
from eeutils.training.parallel import Workers, workers_of_torchrun

FOLDER = Path(sys.argv[1])
SHORT = recipe("digits", epochs=2, batch_size=32)
# Nothing is drawn for an image, and no image is left over, so that shares of a batch make up the batch.
UNCHANGED = replace(SHORT, augmentation=Augmentation(flip=False, translate=0, cutout=0))

RUNS = {"all": {}, "early_exits": {"trained": "early_exits"}, "averaged": {"average_decay": 0.9}}


def some_digits() -> ImageData:
    """128 images to train on, 32 to validate."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(slice(0, 128)), val=digits.val.take(slice(0, 32)))


def with_norms(seed: int) -> MultiExitNet:
    torch.manual_seed(seed)
    return resnet18_3exits(width=2, stem="imagenet")


def without_norms() -> MultiExitNet:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())]
    return MultiExitNet(units, {0: create_exit("avg", 4, 10), 1: create_exit("avg", 8, 10)})


def leave(net: MultiExitNet, name: str, rank: int) -> None:
    save_file(
        {key: tensor.contiguous() for key, tensor in net.state_dict().items()}, FOLDER / f"{name}-{rank}.safetensors"
    )


def train(net: MultiExitNet, config: TrainConfig, checkpoint: Path | None = None) -> list[float]:
    history = fit(net, some_digits(), config, checkpoint=checkpoint, progress=False)
    return [row["train_loss"] for row in history.rows]


def add_up(workers: Workers) -> None:
    """Numbers that are one more in the second process than in the first."""
    mean, first = ([torch.arange(2.0) + workers.rank, torch.full((1,), 2.0) + workers.rank] for _ in range(2))
    workers.average(mean)
    workers.follow_first(first)
    numbers = torch.arange(24.0).view(1, 2, 3, 4)
    images = numbers.to(memory_format=torch.channels_last) + workers.rank
    workers.average([images])
    report = {"mean": [each.tolist() for each in mean], "first": [each.tolist() for each in first]}
    report["channels last"] = torch.equal(images, numbers + 0.5)
    (FOLDER / f"sums-{workers.rank}.json").write_text(json.dumps(report))


def interrupt(net: MultiExitNet, checkpoint: Path) -> None:
    """Train until the second epoch is under way."""
    calls = []

    def stop(unit: nn.Module, given: tuple) -> None:
        calls.append(unit.training)
        if sum(calls) == 1 + 4 + 2:  # the trial's, those of the first epoch, and two
            raise KeyboardInterrupt

    net.units[0].register_forward_pre_hook(stop)
    try:
        train(net, SHORT, checkpoint)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")


def go_on_apart(workers: Workers) -> None:
    """Where one process sees a checkpoint and the other does not."""
    try:
        train(with_norms(seed=0), SHORT, FOLDER / ("all.pt" if workers.writes else "elsewhere.pt"))
    except ValueError as error:
        (FOLDER / f"apart-{workers.rank}.txt").write_text(str(error))


def main() -> None:
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0  # every epoch, however soon it is done
    with workers_of_torchrun():
        workers = Workers.of_this_run()
        add_up(workers)
        for name, changes in RUNS.items():
            net = with_norms(seed=workers.rank)
            leave(net, f"{name}-before", workers.rank)
            train(net, replace(SHORT, **changes), FOLDER / f"{name}.pt")
            leave(net, name, workers.rank)
        interrupt(with_norms(seed=workers.rank), FOLDER / "interrupted.pt")
        net = with_norms(seed=5 + workers.rank)
        train(net, SHORT, FOLDER / "interrupted.pt")
        leave(net, "resumed", workers.rank)
        go_on_apart(workers)
        net = without_norms()
        losses = {"plain": train(net, UNCHANGED)}
        leave(net, "plain", workers.rank)
    if workers.writes:  # and knows of no others any more
        net = without_norms()
        losses["alone"] = train(net, UNCHANGED)
        leave(net, "alone", workers.rank)
        (FOLDER / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
