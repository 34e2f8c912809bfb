"""Scoreboard: one row per network with accuracy and cost of its exits, alone, together and as a cascade."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from eeutils.analysis.decisions import Decisions, decide
from eeutils.analysis.metrics import accuracy_of, ensemble_probs, ensemble_weights
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Choice, choose_thresholds
from eeutils.weights import without_seed


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a number that was measured several times."""

    mean: float
    deviation: float

    @staticmethod
    def of(values: pd.Series) -> "Spread | float":
        """Summarise floats; equal ones and a single one stay a number, and NaN among them gives NaN."""
        mean, deviation = float(values.mean(skipna=False)), float(values.std(skipna=False))
        differ = values.nunique() > 1  # the deviation of equal numbers may be rounded to a little more than 0
        return Spread(mean, deviation) if differ and not pd.isna(mean) else mean

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


MAX_DROP = 0.005
"""Accuracy that a cascade in the scoreboard may lose on validation against its last exit: half a point."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a network: `val` to choose on, `test` to report on."""

    val: Predictions
    test: Predictions


def scoreboard(networks: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return test accuracies in percent and costs of networks, one row each.

    Ensemble weights and thresholds are chosen on validation. "at 50%" spends half of the network's cost (missing if the
    first exit costs more). The cascade has the cheapest shared threshold that loses at most `MAX_DROP`; its cost is a
    share of its own network's.
    """
    board = pd.DataFrame({name: _row(evaluation) for name, evaluation in networks.items()}).T.rename_axis("network")
    early = sorted(set(board) - set(_COLUMNS), key=lambda column: int(column.removeprefix("exit ")))
    return board[[*early, *(column for column in _COLUMNS if column in board)]]


def over_seeds(board: pd.DataFrame) -> pd.DataFrame:
    """Merge the seeds of each network into one row: their number, then mean and standard deviation of each column."""
    groups = board.groupby(without_seed, sort=False)
    rows = {name: {"seeds": len(group), **group.apply(Spread.of)} for name, group in groups}
    return pd.DataFrame.from_dict(rows, orient="index").astype(object).rename_axis(board.index.name)


def within_budget(evaluation: Evaluation, budget: float) -> tuple[Choice, Decisions] | None:
    """Choose on validation for a share of the cost and decide on test; None if the first exit costs more."""
    if float(evaluation.val.relative_costs[0]) > budget:
        return None
    choice = choose_thresholds(evaluation.val, budget=budget)
    return choice, decide(evaluation.test, choice.policy)


def within_budgets(evaluation: Evaluation, budgets: Iterable[float]) -> dict[str, float]:
    """Return the test accuracy (%) within each share of the cost; NaN if the first exit costs more."""
    spent = {f"at {budget:.0%}": within_budget(evaluation, budget) for budget in budgets}
    return {name: float("nan") if each is None else 100 * each[1].accuracy for name, each in spent.items()}


def as_cascade(evaluation: Evaluation) -> dict[str, float]:
    """Return test accuracy and cost (%) of the cheapest cascade that loses at most `MAX_DROP` on validation."""
    decisions = decide(evaluation.test, choose_thresholds(evaluation.val, max_drop=MAX_DROP).policy)
    return {"cascade": 100 * decisions.accuracy, "cascade cost (%)": 100 * decisions.relative_cost}


def _row(evaluation: Evaluation) -> dict[str, float]:
    val, test = evaluation.val, evaluation.test
    accuracies = (100 * test.accuracy).tolist()
    row = {f"exit {number}": value for number, value in enumerate(accuracies[:-1], 1)}
    row |= {"last exit": accuracies[-1], "MACs (M)": float(test.costs[-1]) / 1e6}
    if test.num_exits > 1:
        weighted = ensemble_probs(test, "weighted", ensemble_weights(val))
        row["mean ensemble"] = 100 * accuracy_of(ensemble_probs(test), test.labels)
        row["weighted ensemble"] = 100 * accuracy_of(weighted, test.labels)
        row |= within_budgets(evaluation, [0.5]) | as_cascade(evaluation)
    return row


# They follow the columns of the early exits.
_COLUMNS = ("last exit", "mean ensemble", "weighted ensemble", "at 50%", "cascade", "cascade cost (%)", "MACs (M)")
