"""Kill a training run again and again, each time a forked child: `python trials.py FOLDER SEED`."""

import io
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from eeutils import fit, load_data, recipe
from eeutils.models import resnet18_3exits
from eeutils.training import loop
from eeutils.training.checkpoint import load_checkpoint

DIGITS = load_data("digits")
DATA = replace(DIGITS, train=DIGITS.train.take(slice(0, 128)), val=DIGITS.val.take(slice(0, 32)))


def run(folder: Path) -> None:
    """Train a tiny network; leave its weights and losses in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = resnet18_3exits(width=2, pool="spp", stem="imagenet")
    history = fit(net, DATA, recipe("digits", epochs=5), checkpoint=folder / "checkpoint.pt", progress=False)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "weights.safetensors")
    (folder / "history.json").write_text(json.dumps(history.rows))


def run_in_child(folder: Path, seconds: float | None = None, sent: int = signal.SIGKILL) -> int:
    """Return the exit code of a run, to which `sent` is sent after some seconds."""
    child = os.fork()
    if not child:
        try:
            run(folder)
        except SystemExit as error:
            os._exit(error.code)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, sent)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, seed: int) -> None:
    draw, ends, places = random.Random(seed), [], []
    assert run_in_child(folder / "undisturbed") == 0
    for number in range(4):
        sent = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        ends.append(run_in_child(folder / "killed", draw.uniform(0.2, 0.7), sent))
        if (checkpoint := folder / "killed" / "checkpoint.pt").exists():
            state = load_checkpoint(checkpoint)
            places.append((state["epoch"], state["step"]))
    assert run_in_child(folder / "killed") == 0
    print(json.dumps({"ends": ends, "places": places}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # so that no child imports what saving and an optimizer need
    torch.save({}, io.BytesIO())
    loop._SECONDS_BETWEEN_CHECKPOINTS = 0.0
    main(Path(sys.argv[1]), int(sys.argv[2]))
