"""Show the tables of results/ on README.md and results/README.md."""

import re
from pathlib import Path

from eeutils.files import write_text
from tools.numbers import shown_numbers, unsupported

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAGES = (RESULTS.parent / "README.md", RESULTS / "README.md")

_FILE = re.compile(r"(<!-- (results/[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refresh_pages() -> None:
    """Put the tables of results/ between their marks on the pages, and list numbers in prose that no table shows."""
    shown = {
        number
        for path in RESULTS.glob("*.md")
        if path.name != "README.md"
        for number in shown_numbers(path.read_text("utf-8"))
    }
    for page in PAGES:
        text = with_files(page.read_text("utf-8"), RESULTS.parent)
        write_text(page, text)
        if missing := unsupported(_FILE.sub("", text), shown):
            print(f"{page.relative_to(RESULTS.parent)}, in prose and in no table: {', '.join(missing)}")


def with_files(page: str, folder: Path) -> str:
    """Fill each `<!-- results/NAME.md -->` ... `<!-- end -->` of `page` with that file below `folder`."""
    return _FILE.sub(lambda found: found[1] + (folder / found[2]).read_text("utf-8") + found[3], page)
