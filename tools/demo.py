"""Show the project in a minute: `python -m tools.demo` (or `make demo`).

Gets CIFAR-10, runs ResNet18 with one, two and three exits over its 10,000 test images, chooses a threshold on
validation, and lets images leave the last of these networks early for real.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files: there may be no screen

import matplotlib.pyplot as plt
import torch

from eeutils.analysis.costs import timed
from eeutils.analysis.decisions import Decisions, decide
from eeutils.analysis.predictions import Predictions, collect_logits, predict
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.data import ImageData
from eeutils.device import choose_device
from eeutils.errors import message_instead_of_traceback
from eeutils.files import work_folder
from eeutils.models import prepared_for_inference
from eeutils.notebook import Session
from eeutils.plots import plot_curves, use_style
from eeutils.scoreboard import MAX_DROP, Evaluation, scoreboard
from tools.arguments import refuse_arguments
from tools.tables import frame_as_markdown

NETWORKS = (
    "resnet18-avg",
    "resnet18_2exits-avg",
    "resnet18_2exits-spp",
    "resnet18_3exits-avg",
    "resnet18_3exits-spp",
)
CASCADED = NETWORKS[-1]
FIGURE = Path("runs") / "demo.png"


@message_instead_of_traceback()
def main(args: Sequence[str] = ()) -> None:
    """Measure the networks one by one, then the last of them as a cascade; print and draw it."""
    refuse_arguments("tools.demo", __doc__, args)
    session = Session.from_environment()
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
    _leave_early(session, data, evaluations[CASCADED], device)
    _draw(evaluations)
    print(f"\nFigure: {FIGURE}. All of this took {time.perf_counter() - started:.0f} s.")


def _leave_early(session: Session, data: ImageData, evaluation: Evaluation, device: torch.device) -> None:
    """Time the whole network against its cascade on the same images, and say what came out."""
    choice = choose_thresholds(evaluation.val, max_drop=MAX_DROP)
    net = session.network(CASCADED)
    whole = prepared_for_inference(net).to(device)
    cascade = Cascade(net, choice.policy, device=device)
    seconds_whole, seconds_cascade = [], []
    for _ in range(2):  # taking turns, so that a busy machine slows both alike
        seconds_whole.append(timed(lambda: collect_logits(whole, data.test, batch_size=256), device)[0])
        seconds, result = timed(lambda: cascade.run(data.test, batch_size=256), device)
        seconds_cascade.append(seconds)
    planned = decide(evaluation.test, choice.policy)
    _report(evaluation.test, choice.policy.thresholds, result, min(seconds_whole) / min(seconds_cascade))
    agreeing = float((result.exit_index == planned.exit_index).double().mean())
    print(f"The live cascade and the table of predictions agree on {agreeing:.2%} of the images.")


def _report(test: Predictions, threshold: float, result: Decisions, speed_up: float) -> None:
    print(f"\nLeaving early for real ({CASCADED}), threshold {threshold:.3f} chosen on validation:")
    print(f"  images leaving at exits 1, 2, ...: {', '.join(f'{rate:.1%}' for rate in result.exit_rates.tolist())}")
    print(f"  accuracy {result.accuracy:.2%} against {float(test.accuracy[-1]):.2%} for the last exit")
    cost = result.relative_cost
    print(f"  {cost:.1%} of the multiply-adds: at most {1 / cost:.2f}x as fast; measured {speed_up:.2f}x")


def _draw(evaluations: dict[str, Evaluation]) -> None:
    use_style()
    ax = plot_curves({name: evaluation.test for name, evaluation in evaluations.items()})
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    plt.close(ax.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
