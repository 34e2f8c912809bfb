"""Show the project in a minute: `python -m tools.demo` (or `make demo`).

Gets CIFAR-10, runs ResNet18 with one, two and three exits over its 10,000 test images, and lets images leave a wider
network early, for half of its multiply-adds and for real, on PyTorch and, where it is installed, on OpenVINO.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files: there may be no screen

import matplotlib.pyplot as plt
import torch

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import Policy
from eeutils.analysis.predictions import predict
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.data import ImageData
from eeutils.device import choose_device
from eeutils.engines import PreparedNet
from eeutils.engines.registry import find_engine
from eeutils.errors import message_instead_of_traceback
from eeutils.files import work_folder
from eeutils.models import MultiExitNet
from eeutils.notebook import Session
from eeutils.plots import plot_curves, use_style
from eeutils.scoreboard import Evaluation, scoreboard
from tools.arguments import refuse_arguments
from tools.benchmarks import timed
from tools.tables import frame_as_markdown, markdown_table

NETWORKS = (
    "resnet18-avg",
    "resnet18_2exits-avg",
    "resnet18_2exits-spp",
    "resnet18_3exits-avg",
    "resnet18_3exits-spp",
)
CASCADED = "resnet18_3exits-conv+conv+spp-cifar10-w32"
BUDGET = 0.5
FIGURE = Path("runs") / "demo.png"


@message_instead_of_traceback()
def main(args: Sequence[str] = ()) -> None:
    """Measure the networks one by one, then a wider one as a cascade; print and draw it."""
    refuse_arguments("tools.demo", __doc__, args)
    session = Session()
    device = choose_device()
    started = time.perf_counter()
    with work_folder(FIGURE):
        pass  # fails before the work if the figure cannot be written
    data = session.data
    print(f"{data.name}: {len(data.train):,} training, {len(data.val):,} validation, {len(data.test):,} test images.")
    evaluations = {}
    for network in NETWORKS:
        net, val = session.network(network).to(device), session.predictions(network, "val")
        predict(net, data.test.take(slice(0, 256)))  # a device's first images take longer
        seconds, test = timed(lambda net=net: predict(net, data.test), device)
        evaluations[network] = Evaluation(val, test)
        print(f"  {session.weights_name(network)}: {len(data.test) / seconds:,.0f} test images/s")
    print("\nAccuracy on the test images (%), measured just now:\n")
    print(frame_as_markdown(scoreboard(evaluations)))
    _leave_early(session, data, device)
    _draw(evaluations)
    print(f"\nFigure: {FIGURE}. All of this took {time.perf_counter() - started:.0f} s.")


def _leave_early(session: Session, data: ImageData, device: torch.device) -> None:
    """Time a whole network against its cascade on every engine, and print the outcome."""
    net, test = session.network(CASCADED), session.predictions(CASCADED, "test")
    policy = choose_thresholds(session.predictions(CASCADED, "val"), budget=BUDGET).policy
    print(f"\nLeaving early for real: {session.weights_name(CASCADED)}, thresholds chosen on validation.\n")
    rows = [_speeds(engine, net, policy, data, device) for engine in _engines(device)]
    print(markdown_table(["engine", "whole network, images/s", "early exit, images/s", "times as fast"], rows))
    result = Cascade(net, policy, device=device).run(data.test)
    print(f"\n  images leaving at exits 1, 2, ...: {', '.join(f'{rate:.1%}' for rate in result.exit_rates.tolist())}")
    print(f"  accuracy {result.accuracy:.2%} against {float(test.accuracy[-1]):.2%} for the last exit")
    print(f"  for {result.relative_cost:.1%} of the multiply-adds")
    agreeing = float((result.exit_index == decide(test, policy).exit_index).double().mean())
    print(f"The live cascade and the shipped table of predictions agree on {agreeing:.2%} of the images.")


def _engines(device: torch.device) -> list[str]:
    """Engines to show that are installed and run on `device`."""
    installed = ["torch"]
    with suppress(ModuleNotFoundError):
        if device.type in find_engine("openvino").devices:
            installed.append("openvino")
    return installed


def _speeds(engine: str, net: MultiExitNet, policy: Policy, data: ImageData, device: torch.device) -> list[object]:
    """A row of the table: images per second without and with early exits, in batches."""
    ready = PreparedNet(net, engine, device=device)
    whole, cascade = ready.keeping([net.num_exits - 1]), Cascade(ready, policy)
    batches = [images for images, _ in data.test.take(slice(0, 2_560)).batches(256, device)]
    seconds = {whole.logits: [], cascade: []}
    for _ in range(3):  # taking turns, so that a busy machine slows both alike; the first round warms up
        for answer, measured in seconds.items():
            measured.append(timed(lambda answer=answer: [answer(images) for images in batches], device)[0])
    num_images = sum(map(len, batches))
    speeds = [num_images / min(measured[1:]) for measured in seconds.values()]
    return [engine, *(f"{speed:,.0f}" for speed in speeds), f"{speeds[1] / speeds[0]:.2f}"]


def _draw(evaluations: dict[str, Evaluation]) -> None:
    use_style()
    ax = plot_curves({name: evaluation.test for name, evaluation in evaluations.items()})
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    plt.close(ax.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
