"""Pages show the tables of results/ and quote their numbers."""

import pytest

from tools import pages
from tools.numbers import shown_numbers, unsupported


def test_with_files_fills_the_marks_and_nothing_else(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| new |\n")
    page = "before\n<!-- results/a.md -->\n| old |\n<!-- end -->\nafter\n"

    filled = pages.with_files(page, tmp_path)

    assert filled == "before\n<!-- results/a.md -->\n| new |\n<!-- end -->\nafter\n"
    assert pages.with_files(filled, tmp_path) == filled


def test_with_files_raises_for_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        pages.with_files("<!-- results/missing.md -->\n<!-- end -->", tmp_path)


def test_pages_show_the_tables_as_they_are():
    for page in pages.PAGES:
        text = page.read_text("utf-8")
        assert pages.with_files(text, pages.RESULTS.parent) == text, "run `make results`"


@pytest.mark.parametrize(
    ("prose", "missing"),
    [
        ("It gets 88.6 %, as printed.", []),
        ("It gets 88.59 %, or 0.886.", []),
        ("It gets 88.7 %.", ["88.7 %"]),
        ("A third is 33 %, and 1,234.5 are left.", []),
        ("Half a point, 0.5, is cited.", ["0.5"]),
        ("See [half](https://example.org/0.5) and `0.5`, arXiv 1512.03385.", []),
        ("Two of 3 exits.", []),
    ],
)
def test_unsupported_lists_numbers_that_were_not_shown(prose, missing):
    shown = shown_numbers("<td>0.8859</td> of 3333 images (33.3%), 1,234.46 left<style>0.5</style>")

    assert unsupported(prose, shown) == missing
