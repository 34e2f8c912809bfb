"""The pages that show results."""

import re
from pathlib import Path

import pytest

from tools.pages import PAGES, REPOSITORY, Quote, refreshed, with_files, with_numbers

FILES = "before\n<!-- results/a.md -->\nold\n<!-- end -->\nbetween\n<!-- results/b.md -->\n<!-- end -->\nafter\n"
SEVERAL = "About.\n\n**One**, 1 image\n\n{}\n**Two**, 2 images\n\n{}\n"
TABLE = "| network | seeds | accuracy (%) | MACs (M) |\n| --- | --- | ---: | ---: |\n"
TABLE += "| a+b | 3 | 88.46 ± 0.24 | 1,234.56 |\n| c, d | 1 |  | 35.05 |\n"
LINK = r"\]\(([\w./]+\.(?:ipynb|md|png|py))?(?:#([\w-]+))?\)"
QUOTE = Quote("page.md", "It has {} % (of all)", "c.md", "a+b", "accuracy (%)")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| A |\n")
    (tmp_path / "results" / "b.md").write_text("| B |\n")
    (tmp_path / "results" / "c.md").write_text(TABLE)
    return tmp_path


def test_each_file_stands_between_its_marks_and_the_rest_stays(folder):
    once = with_files(FILES, folder)

    assert "before\n<!-- results/a.md -->\n| A |\n<!-- end -->\nbetween\n" in once
    assert once.endswith("between\n<!-- results/b.md -->\n| B |\n<!-- end -->\nafter\n")
    assert with_files(once, folder) == once


def test_a_file_that_is_not_there_is_an_error(folder):
    (folder / "results" / "b.md").unlink()

    with pytest.raises(FileNotFoundError, match=r"b\.md"):
        with_files(FILES, folder)


@pytest.mark.parametrize(
    ("row", "column", "old", "new"),
    [
        ("a+b", "accuracy (%)", "92.8", "88.5"),
        ("a+b", "accuracy (%)", "90", "88"),
        ("a+b", "MACs (M)", "1.00", "1,234.56"),
        ("a+b", "MACs (M)", "1,000", "1,235"),
        ("c, d", "seeds", "3", "1"),
    ],
)
def test_a_number_is_that_of_its_table_with_the_decimals_it_had(folder, row, column, old, new):
    quote = Quote("page.md", "It has {} % (of all)", "c.md", row, column)

    once = with_numbers(f"1 of 2. It has {old} %\n(of all), 3.", [quote], folder / "results")

    assert once == f"1 of 2. It has {new} %\n(of all), 3."
    assert with_numbers(once, [quote], folder / "results") == once


@pytest.mark.parametrize(("row", "column"), [("a", "MACs (M)"), ("a+b", "MACs"), ("c, d", "accuracy (%)")])
def test_a_number_that_is_not_there_is_an_error_with_the_choices(folder, row, column):
    with pytest.raises(ValueError, match=r"rows \['a\+b', 'c, d'\], columns \['seeds', 'accuracy"):
        with_numbers("has 1", [Quote("page.md", "has {}", "c.md", row, column)], folder / "results")


def test_a_file_may_have_several_tables(folder):
    (folder / "results" / "d.md").write_text(SEVERAL.format(TABLE, TABLE.replace("88.46", "77.00")))
    quotes = [
        Quote("page.md", "One has {} %", "d.md#One", "a+b", "accuracy (%)"),
        Quote("page.md", "two has {} %", "d.md#Two", "a+b", "accuracy (%)"),
    ]

    once = with_numbers("One has 1.0 %, two has 1.0 %.", quotes, folder / "results")

    assert once == "One has 88.5 %, two has 77.0 %."
    with pytest.raises(ValueError, match=r"no table 'd\.md#Three'"):
        with_numbers("has 1", [Quote("page.md", "has {}", "d.md#Three", "a+b", "seeds")], folder / "results")


@pytest.mark.parametrize("page", ["It had 90 % (of all).", "It has 90 % (of all). It has 91 % (of all)."])
def test_words_that_changed_are_told(folder, page):
    with pytest.raises(ValueError, match=r"page.md has [02] times 'It has \{\} % \(of all\)'"):
        with_numbers(page, [QUOTE], folder / "results")


def test_each_page_has_its_own_numbers(folder):
    (folder / "results" / "quotes.csv").write_text(
        'page,words,table,row,column\npage.md,"Of all, {} %",c.md,a+b,accuracy (%)\nother.md,{} M,c.md,a+b,MACs (M)\n'
    )
    (folder / "page.md").write_text(f"Of all, 1.0 % at 2 M.\n{FILES}")

    assert refreshed(folder / "page.md", folder) == f"Of all, 88.5 % at 2 M.\n{with_files(FILES, folder)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_pages_show_results_as_they_are(page):
    text = page.read_text("utf-8")

    assert "<!-- results/" in text
    assert refreshed(page, REPOSITORY) == text, "run `make results`"


def anchors(page: Path) -> set[str]:
    """What links may name after "#": headings as GitHub writes them there."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "notebooks"], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings_that_are_there(page):
    texts = [page] if page.is_file() else sorted(page.glob("*.ipynb"))
    links = [(path, *link) for path in texts for link in re.findall(LINK, path.read_text("utf-8"))]

    assert links
    for path, to, anchor in links:
        target = (path.parent / to).resolve() if to else path
        assert target.exists(), (path.name, to)
        assert not anchor or anchor in anchors(target), (path.name, to, anchor)
