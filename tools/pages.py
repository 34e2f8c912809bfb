"""README.md and results/README.md show what lies in results/: whole files, and single numbers within sentences.

A file stands between two marks on lines of their own, <!-- results/NAME.md --> and <!-- end -->. results/quotes.csv
says which numbers of these tables are quoted where; there "{}" stands for the number in the words around it.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

from eeutils.files import write_text

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"
PAGES = (REPOSITORY / "README.md", RESULTS / "README.md")

_FILE = re.compile(r"(<!-- (results/[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Quote:
    """A number of a table within a sentence.

    Attributes:
        page: with the sentence, from the repository's root.
        words: of it, "{}" where the number stands.
        table: a file of results/; of one with several tables, "FILE#WORDS" is the first after those words in bold.
        row: its first cell.
        column: its title.
    """

    page: str
    words: str
    table: str
    row: str
    column: str


def refresh_pages() -> None:
    """Put all that the pages show of results/ into them, as it is now."""
    for page in PAGES:
        write_text(page, refreshed(page, REPOSITORY))


def refreshed(page: Path, repository: Path) -> str:
    """The text of `page` with files and numbers as they are now in results/ of `repository`."""
    with (repository / "results" / "quotes.csv").open(encoding="utf-8", newline="") as file:
        quotes = [Quote(**row) for row in csv.DictReader(file)]
    name = page.relative_to(repository).as_posix()
    text = with_files(page.read_text("utf-8"), repository)
    return with_numbers(text, (quote for quote in quotes if quote.page == name), repository / "results")


def with_files(page: str, folder: Path) -> str:
    """`page` with the files that its marks name, below `folder`.

    Raises:
        FileNotFoundError: if one is not there.
    """
    return _FILE.sub(lambda found: found[1] + (folder / found[2]).read_text("utf-8") + found[3], page)


def with_numbers(page: str, quotes: Iterable[Quote], results: Path) -> str:
    """`page` with each number as it is in its table, with as many decimals as it was written with.

    Raises:
        ValueError: if the words of a quote are not on the page, or several times, or there is no such table or number.
    """
    for quote in quotes:
        before, after = (r"\s+".join(map(re.escape, part.split(" "))) for part in quote.words.split("{}"))
        pattern = re.compile(rf"({before})[\d,]+\.?(\d*)({after})")
        number = _cell(_table(results, quote.table), quote.row, quote.column)
        found = pattern.findall(page)
        if len(found) != 1:
            raise ValueError(f"{quote.page} has {len(found)} times {quote.words!r}, which results/quotes.csv speaks of")
        ((_, decimals, _),) = found
        page = pattern.sub(rf"\g<1>{number:,.{len(decimals)}f}\g<3>", page)
    return page


def _table(results: Path, name: str) -> list[str]:
    """The lines of the table that a quote names."""
    file, _, words = name.partition("#")
    text = (results / file).read_text("utf-8")
    lines = (text.partition(f"**{words}**")[2] if words else text).splitlines()
    table = list(takewhile(_in_table, dropwhile(lambda line: not _in_table(line), lines)))
    if not table:
        raise ValueError(f"there is no table {name!r} in results/")
    return table


def _in_table(line: str) -> bool:
    return line.startswith("|")


def _cell(table: Sequence[str], row: str, column: str) -> float:
    """A number of a Markdown table; of several seeds their mean."""
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in table)
    cells = {(name, title): cell for name, *others in rows for title, cell in zip(header[1:], others, strict=True)}
    if not cells.get((row, column)):
        raise ValueError(f"there is no {column!r} of {row!r}; rows {[name for name, *_ in rows]}, columns {header[1:]}")
    return float(cells[row, column].split()[0].replace(",", ""))
