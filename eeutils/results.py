"""Recompute every published number from the shipped weights: `python -m eeutils.results` (or `make results`).

Runs each shipped network over the real test images, compares with the accuracies recorded in the registry, and writes
`results/scoreboard.md`, its figure and the table in README.md. Fails if a published number does not come out.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files: there may be no screen

import matplotlib.pyplot as plt
import torch

from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import load_data
from eeutils.files import atomic_path
from eeutils.plots import plot_curves, use_style
from eeutils.scoreboard import Evaluation, as_markdown, scoreboard
from eeutils.training import default_device
from eeutils.weights import WeightEntry, default_registry, load_predictions, load_weights

TOLERANCE = 0.0005
"""Share of the images that may be judged otherwise on another machine: 5 of 10,000, from rounding in another order."""

REPOSITORY = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by `make results` -->", "<!-- results end -->"


def main() -> int:
    """Recompute, compare, write; the number of mistakes found."""
    entries = [entry for entry in default_registry().entries if entry.status == "trained"]
    if not entries:
        print("no trained weights in the registry", file=sys.stderr)
        return 1
    evaluations, mistakes = {}, []
    for entry in entries:
        test = _recompute(entry)
        mistakes += _mistakes(entry, test)
        evaluations[entry.name] = Evaluation(load_predictions(entry.name, "val"), test)
        print(f"{entry.name}: {' / '.join(f'{share:.2%}' for share in _accuracies(test))}", flush=True)
    if mistakes:
        print("published numbers that do not come out:\n  " + "\n  ".join(mistakes), file=sys.stderr)
        return len(mistakes)
    published = {name: Evaluation(run.val, load_predictions(name, "test")) for name, run in evaluations.items()}
    table = as_markdown(scoreboard(published))
    _write(REPOSITORY / "results" / "scoreboard.md", table + "\n")
    _write(REPOSITORY / "README.md", with_table((REPOSITORY / "README.md").read_text("utf-8"), table))
    _draw(published, REPOSITORY / "results" / "accuracy_cost.png")
    print(f"\n{table}\n\nwritten to results/ and README.md")
    return 0


def with_table(readme: str, table: str) -> str:
    """`readme` with `table` between its two markers.

    Raises:
        ValueError: if a marker is missing.
    """
    if START not in readme or END not in readme:
        raise ValueError(f"README.md needs the markers {START} and {END}")
    before, _, rest = readme.partition(START)
    return f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}"


def _recompute(entry: WeightEntry) -> Predictions:
    device = default_device()
    return predict(load_weights(entry.name, device), load_data(entry.data).test, device=device)


def _mistakes(entry: WeightEntry, test: Predictions) -> list[str]:
    recorded, now = entry.accuracy["test"], _accuracies(test)
    wrong = [
        f"{entry.name}, exit {number}: {there:.2%} is published, {here:.2%} came out"
        for number, (there, here) in enumerate(zip(recorded, now, strict=True), 1)
        if abs(there - here) > TOLERANCE
    ]
    if list(entry.macs) != test.costs.tolist():
        wrong.append(f"{entry.name}: multiply-adds {list(entry.macs)} are published, {test.costs.tolist()} came out")
    return wrong


def _accuracies(test: Predictions) -> list[float]:
    return test.correct.to(torch.float64).mean(1).tolist()


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def _draw(evaluations: dict[str, Evaluation], path: Path) -> None:
    use_style()
    ax = plot_curves({name: run.test for name, run in evaluations.items()}, plt.subplots(figsize=(8.5, 5))[1])
    ax.set_title("CIFAR-10 test accuracy against what an image costs on average")
    ax.figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(ax.figure)


if __name__ == "__main__":
    sys.exit(main())
