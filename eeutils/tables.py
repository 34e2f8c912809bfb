"""Tables as Markdown, for files that people read on GitHub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd


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
