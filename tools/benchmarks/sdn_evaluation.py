"""Time an SDN evaluation, the original way and ours: `python -m tools.benchmarks.sdn_evaluation`.

The original (Kaya et al., ICML 2019) ran the network anew for every threshold, one image at a time, each image stopping
at the first exit sure enough of it. Here the network runs once, in batches and to the end, and all thresholds are read
off its table of logits. Both give the same accuracies and costs, which is checked. The original's way is written
afresh, without its data loader, and timed on a part of the images: others cost about the same.

The other table times what the notebooks on overthinking, early exits and confusion compute, from saved predictions.
Within a repeat the contenders take turns, so that a busy machine slows all alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from torch import Tensor

from eeutils.analysis.confusion import (
    Standardization,
    auroc_draws,
    confusion_scores,
    doubt,
    error_indicator,
    indicator_table,
)
from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import decide, with_fallback
from eeutils.analysis.metrics import bootstrap_interval
from eeutils.analysis.overthinking import destructive, only_correct_at, wasteful
from eeutils.analysis.policies import SDN_THRESHOLDS, AgreementPolicy, PatiencePolicy
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.risk import choose_with_guarantee
from eeutils.analysis.thresholds import accuracy_cost_curve, choose_thresholds
from eeutils.data import Split, load_data
from eeutils.errors import message_instead_of_traceback
from eeutils.models import MultiExitNet
from eeutils.models.multiexit import Stage
from eeutils.scoreboard import MAX_DROP
from eeutils.training import choose_device
from eeutils.weights import load_predictions, load_weights, weight_entry
from tools.benchmarks import timed
from tools.benchmarks.report import machine, publish, report_path
from tools.tables import BUDGETS, frame_as_markdown

SCORES = ("confidence", "entropy", "margin", "ensemble", "geometric")


@dataclass(frozen=True)
class SdnBenchmark:
    """Options: what to measure, and how.

    Attributes:
        weights: the network with early exits.
        device: "cpu" or "cuda".
        images: so many test images are timed as the original did it; the one pass runs over all.
        repeats: of everything; the first warms up and is not counted.
        out: the report; by default results/sdn_evaluation.md, on a GPU results/sdn_evaluation-cuda.md.
    """

    weights: str = "resnet18_sdn-mixed-cifar10-w16"
    device: str = "cpu"
    images: int = 200
    repeats: int = 3
    out: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of an evaluation at T thresholds, each shared by all early exits.

    Attributes:
        accuracy: (T,) float64.
        cost: (T,) float64, mean multiply-adds an image.
    """

    accuracy: Tensor
    cost: Tensor


@dataclass(frozen=True)
class Race:
    """Times of both ways, measured alternately.

    Attributes:
        original: (R,) float64, seconds one at a time for `part` images, one number a repeat.
        passed: (R,) float64, seconds of the one pass over all `images`.
        swept: (R,) float64, seconds for all thresholds and both fallbacks from its table.
        part: images of the slow way.
        images: images of the fast way.
        agree: whether both said the same of the part, up to one image.
    """

    original: Tensor
    passed: Tensor
    swept: Tensor
    part: int
    images: int
    agree: bool

    @property
    def ratio(self) -> Tensor:
        """(R,) how many times as long the original's way takes an image."""
        return (self.original / self.part) / ((self.passed + self.swept) / self.images)


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Measure, print the report and write it; an unmet requirement ends with a message, not a traceback."""
    options = tyro.cli(SdnBenchmark, prog="python -m tools.benchmarks.sdn_evaluation", description=__doc__, args=args)
    publish(run(options), options.out or report_path("sdn_evaluation", options.device))


def run(options: SdnBenchmark) -> str:
    """The whole report, in Markdown."""
    device = choose_device(options.device)
    net = load_weights(options.weights, device)
    test = load_data(weight_entry(options.weights).data).test
    race = measure(net, test, options.images, options.repeats)
    seconds = section_seconds(
        lambda: (load_predictions(options.weights, "val"), load_predictions(options.weights, "test")), options.repeats
    )
    parts = [
        f"`{options.weights}` on {machine(device)}",
        race_report(race),
        sections_report(seconds, num_images=len(test), num_exits=net.num_exits),
    ]
    return "\n\n".join(parts) + "\n"


@torch.no_grad()
def one_at_a_time(net: MultiExitNet, split: Split, thresholds: Sequence[float], costs: Tensor) -> Outcome:
    """Evaluate as the original does: one pass per threshold, image by image, each stopping at the first sure exit."""
    device = next(net.parameters()).device
    stages = list(net.stages())
    accuracy, cost = [], []
    for threshold in thresholds:
        right, spent = 0, 0.0
        for image, label in split.batches(1, device):
            named, left_at = answer(stages, image, threshold)
            right += named == label.item()
            spent += float(costs[left_at])
        accuracy.append(right / len(split))
        cost.append(spent / len(split))
    return Outcome(torch.tensor(accuracy, dtype=torch.float64), torch.tensor(cost, dtype=torch.float64))


def answer(stages: Sequence[Stage], image: Tensor, threshold: float) -> tuple[int, int]:
    """Class of one image (1, C, H, W), and the exit where it stops.

    Where no exit is sure, the last included, it is the answer of the most confident one.
    """
    x, surest, named = image, -1.0, -1
    for index, stage in enumerate(stages):
        x = stage.features(x)
        confidence, best = stage.answer(x).softmax(-1)[0].max(0)
        if confidence.item() >= threshold:
            return int(best), index
        if confidence.item() > surest:
            surest, named = confidence.item(), int(best)
    return named, len(stages) - 1


def from_table(predictions: Predictions, thresholds: Sequence[float]) -> dict[str, Outcome]:
    """Compute the same from a table, for each fallback."""
    outcomes = {}
    for fallback in ("last", "most_confident"):
        curve = accuracy_cost_curve(with_fallback(predictions, fallback), thresholds)
        outcomes[fallback] = Outcome(curve.accuracy, curve.cost)
    return outcomes


def measure(net: MultiExitNet, split: Split, part: int, repeats: int) -> Race:
    """Time both ways on `split`, the original's on its first `part` images, with the thresholds of the original."""
    device = next(net.parameters()).device
    few = split.take(slice(0, part))
    costs = exit_costs(net, split.image_shape)
    predictions = predict(net, split)
    # Different kernels for different batch sizes round differently: a threshold may fall between, for an image.
    slow = one_at_a_time(net, few, SDN_THRESHOLDS, costs)
    fast = from_table(predictions.take(torch.arange(len(few))), SDN_THRESHOLDS)["most_confident"]
    agree = same_up_to_one(slow, fast, costs, len(few))
    ways: dict[str, Callable[[], object]] = {
        "original": partial(one_at_a_time, net, few, SDN_THRESHOLDS, costs),
        "passed": partial(predict, net, split),
        "swept": partial(from_table, predictions, SDN_THRESHOLDS),
    }
    runs = [{name: timed(way, device)[0] for name, way in ways.items()} for _ in range(repeats + 1)]
    seconds = {name: torch.tensor([run[name] for run in runs[1:]], dtype=torch.float64) for name in ways}
    return Race(**seconds, part=len(few), images=len(split), agree=agree)


def same_up_to_one(one: Outcome, other: Outcome, costs: Tensor, num_images: int) -> bool:
    """Return True if the outcomes differ by at most one image at each threshold."""
    apart = (one.accuracy - other.accuracy).abs() * num_images
    apart_in_cost = (one.cost - other.cost).abs() * num_images / float(costs[-1])
    return bool((apart <= 1 + 1e-6).all() and (apart_in_cost <= 1 + 1e-6).all())


def race_report(race: Race) -> str:
    """Report the ratio and its parts."""
    count = len(SDN_THRESHOLDS)
    an_image = 1000 * race.original.median() / race.part
    whole = float(race.original.median()) / race.part * race.images
    fast = race.passed + race.swept
    return (
        f"**One evaluation, {count} thresholds.** As the original did it (batches of 1, one pass a threshold): "
        f"{race.original.median():.2f} s for {race.part:,} images, {an_image:.1f} ms an image for all thresholds; "
        f"for {race.images:,} images that makes {whole:,.0f} s (extrapolated). From one pass in batches: "
        f"{fast.median():.2f} s for {race.images:,} images, measured, of which {1000 * race.swept.median():.0f} ms for "
        f"all thresholds with both fallbacks. **Ratio an image: {race.ratio.median():.0f}x** "
        f"({race.ratio.min():.0f} to {race.ratio.max():.0f}). Both ways agree on the {race.part:,} images: "
        f"{'yes, up to one at each threshold' if race.agree else 'NO'}."
    )


def section_seconds(load: Callable[[], tuple[Predictions, Predictions]], repeats: int) -> pd.DataFrame:
    """Seconds of each section, one row a repeat: saved predictions for validation and test are read, then analysed."""
    cpu, rows = torch.device("cpu"), []
    for _ in range(repeats + 1):
        reading, tables = timed(load, cpu)
        seconds = {name: timed(partial(section, *tables), cpu)[0] for name, section in SECTIONS.items()}
        rows.append({"reading": reading, **seconds})
    return pd.DataFrame(rows[1:])


def overthinking(_: Predictions, test: Predictions) -> None:
    """Both effects, exit by exit and class by class, with the interval; images that only one exit gets right."""
    waste, loss = wasteful(test), destructive(test)
    for effect in (waste, loss):
        effect.table()
        effect.class_table()
    loss.share_interval()
    for index in range(test.num_exits):
        only_correct_at(test, index)


def early_exits(validation: Predictions, test: Predictions) -> None:
    """Both grids, both fallbacks, five scores; budgets, half a point, patience, agreement and a guarantee."""
    from_table(test, SDN_THRESHOLDS)
    chosen = [PatiencePolicy(patience) for patience in range(1, test.num_exits - 1)]
    chosen += [AgreementPolicy(count) for count in range(2, test.num_exits)]
    for score in SCORES:
        accuracy_cost_curve(test, score=score)
        chosen.append(choose_thresholds(validation, max_drop=MAX_DROP, per_exit=True, score=score).policy)
    affordable = [budget for budget in (*BUDGETS, 1.0) if budget >= validation.relative_costs[0]]
    chosen += [choose_thresholds(validation, budget=budget).policy for budget in affordable]
    chosen.append(choose_with_guarantee(validation, max_risk=0.01).policy)
    for policy in chosen:
        outcome = decide(test, policy)
        _ = outcome.accuracy, outcome.relative_cost, outcome.exit_rates


def confusion(validation: Predictions, test: Predictions) -> None:
    """Confusion and doubt as indicators of error: histograms, AUROC with its interval, risk and coverage.

    The scores are standardised with those of the validation split: the training split's are two saved numbers.
    """
    standardize = Standardization.of(confusion_scores(validation))
    hints, wrong = {"confusion": standardize(confusion_scores(test)), "doubt": doubt(test)}, ~test.correct[-1]
    indicator_table({name: error_indicator(hint, wrong) for name, hint in hints.items()})
    for hint in hints.values():
        bootstrap_interval(auroc_draws(hint, wrong))


SECTIONS: dict[str, Callable[[Predictions, Predictions], None]] = {
    "overthinking": overthinking,
    "early exits": early_exits,
    "confusion": confusion,
}


def sections_report(seconds: pd.DataFrame, num_images: int, num_exits: int) -> str:
    """One row per section, and their sum."""
    table = seconds.assign(all=seconds.sum(axis=1)).agg(["min", "median"]).T
    table.columns = ["seconds, best", "median"]
    heading = f"**From saved predictions**, {num_images:,} test images and {num_exits} exits"
    return f"{heading}\n\n{frame_as_markdown(table.rename_axis('section'))}"


if __name__ == "__main__":
    main()
