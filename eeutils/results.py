"""Recompute every published number from the shipped weights: `python -m eeutils.results` (or `make results`).

Runs each shipped network over the real test images, compares with the accuracies recorded in the registry, and writes
`results/scoreboard.md` and its figure. Then every table of results/ that README.md shows is put there anew. Fails if a
published number does not come out.
"""

import re
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
from eeutils.scoreboard import Evaluation, scoreboard
from eeutils.tables import frame_as_markdown
from eeutils.training import default_device
from eeutils.weights import WeightEntry, default_registry, load_predictions, load_weights

TOLERANCE = 0.0005
"""Share of the images that may be judged otherwise on another machine: 5 of 10,000, from rounding in another order."""

REPOSITORY = Path(__file__).resolve().parents[1]
_INCLUDED = re.compile(r"(<!-- (results/[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    table = frame_as_markdown(scoreboard(published))
    _write(REPOSITORY / "results" / "scoreboard.md", table + "\n")
    readme = REPOSITORY / "README.md"
    _write(readme, with_tables(readme.read_text("utf-8"), REPOSITORY))
    _draw(published, REPOSITORY / "results" / "accuracy_cost.png")
    print(f"\n{table}\n\nwritten to results/ and README.md")
    return 0


def with_tables(readme: str, folder: Path) -> str:
    """`readme` with each table of results/ between its two marks: <!-- results/NAME.md --> and <!-- end -->.

    Raises:
        FileNotFoundError: if a table is not there.
    """
    return _INCLUDED.sub(lambda found: found[1] + (folder / found[2]).read_text("utf-8") + found[3], readme)


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
