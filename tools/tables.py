"""Tables of results, and tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from eeutils.analysis.overthinking import destructive
from eeutils.scoreboard import Evaluation, Spread, as_cascade, within_budgets

BUDGETS = (0.25, 0.5, 0.75)
"""Shares of a network's cost at which Shallow-Deep Networks are compared."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table: floats with two decimals, right-aligned; NaN empty; anything else as it is."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(isinstance(row[at], float | Spread) for row in rows) for at in range(len(header))]
    lines = [
        header,
        ["---:" if right else "---" for right in numeric],
        *([_text(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def frame_as_markdown(frame: pd.DataFrame) -> str:
    """Format a DataFrame as `markdown_table`, its index first."""
    return markdown_table([frame.index.name or "", *map(str, frame.columns)], frame.itertuples())


def shallow_deep_board(networks: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return test accuracies in percent of networks with many exits, within budgets and as a cascade, and overthinking.

    Budgets are shares of the network's own cost; accuracy is missing if the first exit costs more. Thresholds are
    chosen on validation. The destructive share comes with its 95 % bootstrap interval.
    """
    return pd.DataFrame({name: _shallow_deep_row(each) for name, each in networks.items()}).T.rename_axis("network")


def _shallow_deep_row(evaluation: Evaluation) -> dict[str, float]:
    test = evaluation.test
    overthought = destructive(test)
    low, high = overthought.share_interval()
    return {
        **within_budgets(evaluation, BUDGETS),
        "last exit": 100 * float(test.accuracy[-1]),
        **as_cascade(evaluation),
        "destructive share (%)": 100 * overthought.share,
        "from": 100 * low,
        "to": 100 * high,
        "MACs (M)": float(test.costs[-1]) / 1e6,
    }


def _text(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "" if pd.isna(cell) else f"{cell:.2f}"
