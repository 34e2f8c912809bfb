"""Train in several processes: `torchrun --nproc-per-node 2 together.py FOLDER`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from eeutils.data import Augmentation, ImageData, TrainBatches, load_data
from eeutils.files import save_tensors
from eeutils.models import MultiExitNet, create_exit, resnet18_3exits
from eeutils.training import History, TrainConfig, fit, loop, recipe
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
    save_tensors(FOLDER / f"{name}-{rank}.safetensors", net.state_dict())


def train(net: MultiExitNet, config: TrainConfig, checkpoint: Path | None = None) -> History:
    return fit(net, some_digits(), config, checkpoint=checkpoint, progress=False)


def train_until_terminated(checkpoint: Path) -> None:
    """Send SIGTERM to the second process in its second epoch, which ends the run in both."""
    original = TrainBatches.epoch

    def epoch(self, number):
        for index, batch in enumerate(original(self, number)):
            if (number, index, self.rank) == (1, 2, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    TrainBatches.epoch = epoch
    try:
        train(with_norms(seed=0), SHORT, checkpoint)
    except SystemExit:
        TrainBatches.epoch = original
        return
    raise AssertionError("the run was not stopped")


def main() -> None:
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0
    with workers_of_torchrun():
        workers = Workers.of_this_run()
        for name, changes in RUNS.items():
            net = with_norms(seed=workers.rank)
            leave(net, f"{name}-before", workers.rank)
            train(net, replace(SHORT, **changes), FOLDER / f"{name}.pt")
            leave(net, name, workers.rank)
        # One process gets SIGTERM; only the first has the checkpoint, as on machines without a common disk.
        own = FOLDER / f"stopped-{workers.rank}.pt"
        train_until_terminated(own)
        net = with_norms(seed=5 + workers.rank)
        train(net, SHORT, own)
        leave(net, "resumed", workers.rank)
        net = without_norms()
        shared = train(net, UNCHANGED)
        leave(net, "shared", workers.rank)
    if workers.is_first:  # alone from here on
        net = without_norms()
        alone = train(net, UNCHANGED)
        leave(net, "alone", workers.rank)
        losses, expected = ([row["train_loss"] for row in history.rows] for history in (shared, alone))
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)


if __name__ == "__main__":
    main()
