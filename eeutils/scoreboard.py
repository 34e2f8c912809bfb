"""One row per network: what all its exits achieve, alone, together and as a cascade."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from eeutils.analysis.decisions import Decisions, decide
from eeutils.analysis.metrics import accuracy_of, ensemble_probs, ensemble_weights
from eeutils.analysis.overthinking import destructive
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Choice, choose_thresholds
from eeutils.weights import without_seed


@dataclass(frozen=True)
class Spread:
    """A number that was measured several times, for a table: its mean, and the sample's standard deviation."""

    mean: float
    deviation: float

    @staticmethod
    def of(values: pd.Series) -> "Spread | float":
        """From floats: the number itself if they do not differ or there is only one, NaN if one is missing."""
        mean, deviation = float(values.mean(skipna=False)), float(values.std(skipna=False))
        # Not by the deviation: of equal numbers rounding may leave a little.
        return Spread(mean, deviation) if values.nunique() > 1 and not pd.isna(mean) else mean

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: numbers with two decimals, right-aligned; missing ones empty; anything else as it is."""
    rows = [list(row) for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[index], float | Spread) for row in rows) for index in range(len(header))
    ]
    lines = [
        header,
        ["---:" if right else "---" for right in numeric],
        *([_text(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def frame_as_markdown(frame: pd.DataFrame) -> str:
    """`markdown_table` of a DataFrame, its index first."""
    rows = ([index, *row] for index, row in zip(frame.index, frame.itertuples(index=False), strict=True))
    return markdown_table([frame.index.name or "", *map(str, frame.columns)], rows)


def _text(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "" if pd.isna(cell) else f"{cell:.2f}"


MAX_DROP = 0.005
"""What a cascade in the scoreboard may lose on validation against its last exit: half a point."""

BUDGETS = (0.25, 0.5, 0.75)
"""Shares of a network's cost at which Shallow-Deep Networks are compared."""

HEADLINE = {
    "resnet18-avg-cifar10-w16": "ResNet18, width 16, no early exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w16": "ResNet18, width 16, 3 exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w24": "ResNet18, width 24, 3 exits",
    "resnet18_3exits-conv+conv+spp-cifar10-w32": "ResNet18, width 32, 3 exits",
    "mobilenet_sdn-mixed-cifar10": "MobileNet, Shallow-Deep, 7 exits",
    "resnet56_sdn-mixed-cifar10": "ResNet56, Shallow-Deep, 7 exits",
}
"""The networks in the README's table, without their seeds, and what they are called there."""


@dataclass(frozen=True)
class Evaluation:
    """A network's predictions: `val` to choose by, `test` to report on."""

    val: Predictions
    test: Predictions


def scoreboard(networks: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Test accuracies in percent and costs of networks by name.

    Ensemble weights and thresholds are chosen on validation: those that spend half of the network's cost (missing where
    the first exit alone costs more); and the cascade's, one for all exits, the cheapest that loses at most `MAX_DROP`
    there. Its cost is a share of its own network's.
    """
    board = pd.DataFrame({name: _row(evaluation) for name, evaluation in networks.items()}).T.rename_axis("network")
    early = sorted(set(board) - set(_COLUMNS), key=lambda column: int(column.removeprefix("exit ")))
    return board[[*early, *(column for column in _COLUMNS if column in board)]]


def shallow_deep_board(networks: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Test accuracies in percent of networks with many exits, within budgets and as a cascade, and their overthinking.

    A budget is a share of the network's own cost; one that is smaller than the first exit's cannot be met, and its
    accuracy is missing. Thresholds are chosen on validation, for the cascade as in `scoreboard`. The destructive share
    is that of the last exit's mistakes which some exit before it would not have made, with its 95 % bootstrap interval.
    """
    return pd.DataFrame({name: _shallow_deep_row(each) for name, each in networks.items()}).T.rename_axis("network")


def over_seeds(board: pd.DataFrame) -> pd.DataFrame:
    """`board` with one row for all seeds of a network: how many they are, then mean and standard deviation."""
    groups = board.groupby(without_seed, sort=False)
    rows = {name: {"seeds": len(group), **group.apply(Spread.of)} for name, group in groups}
    return pd.DataFrame.from_dict(rows, orient="index").astype(object).rename_axis(board.index.name)


def headline_board(boards: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The networks of `HEADLINE` that are in `boards` and what of them matters most, one row for all seeds of each.

    Args:
        boards: with a row for each seed, as `scoreboard` and `shallow_deep_board` make them.
    """
    together = pd.concat([board.reindex(columns=list(_HEADLINE_COLUMNS)) for board in boards])
    board = over_seeds(together.rename(columns=_HEADLINE_COLUMNS))
    board = board.loc[[name for name in HEADLINE if name in board.index]]
    seeds = board.pop("seeds")
    named = {name: HEADLINE[name] + (f" ({count} seeds)" if count > 1 else "") for name, count in seeds.items()}
    return board.rename(index=named)


def _shallow_deep_row(evaluation: Evaluation) -> dict[str, float]:
    test = evaluation.test
    overthought = destructive(test)
    low, high = overthought.share_interval()
    return {
        **_within_budgets(evaluation, BUDGETS),
        "last exit": 100 * float(test.accuracy[-1]),
        **_as_cascade(evaluation),
        "destructive share (%)": 100 * overthought.share,
        "from": 100 * low,
        "to": 100 * high,
        "MACs (M)": float(test.costs[-1]) / 1e6,
    }


def within_budget(evaluation: Evaluation, budget: float) -> tuple[Choice, Decisions] | None:
    """The choice on validation for that share of the cost, and the test images' decisions; None if it cannot be met."""
    if float(evaluation.val.relative_costs[0]) > budget:
        return None
    choice = choose_thresholds(evaluation.val, budget=budget)
    return choice, decide(evaluation.test, choice.policy)


def _within_budgets(evaluation: Evaluation, budgets: Iterable[float]) -> dict[str, float]:
    spent = {f"at {budget:.0%}": within_budget(evaluation, budget) for budget in budgets}
    return {name: float("nan") if each is None else 100 * each[1].accuracy for name, each in spent.items()}


def _as_cascade(evaluation: Evaluation) -> dict[str, float]:
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
        row |= _within_budgets(evaluation, [0.5]) | _as_cascade(evaluation)
    return row


# After those of the early exits.
_COLUMNS = (
    "last exit",
    "mean ensemble",
    "weighted ensemble",
    "at 50%",
    "cascade",
    "cascade cost (%)",
    "MACs (M)",
)

# Of both boards, and their titles in the headline.
_HEADLINE_COLUMNS = {
    "MACs (M)": "million multiply-adds",
    "last exit": "all images to the end",
    "at 50%": "half of the cost",
}
