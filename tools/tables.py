"""Markdown tables."""

from collections.abc import Iterable, Sequence

import pandas as pd

from eeutils.scoreboard import Spread


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


def _text(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "" if pd.isna(cell) else f"{cell:.2f}"
