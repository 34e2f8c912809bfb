"""Places to get a thing from, asked one after the other."""

from dataclasses import replace

import pytest

from eeutils.errors import DataUnavailableError, StorageError
from eeutils.sources import Source, first_that_delivers


@pytest.fixture
def asked() -> list[str]:
    """The names of the sources that were asked, in order."""
    return []


def source(name: str, asked: list[str], error: BaseException | None = None) -> Source[str]:
    """One that delivers its name, or raises `error`."""

    def fetch() -> str:
        asked.append(name)
        if error is not None:
            raise error
        return name

    return Source(name, fetch, remedy=f"mend {name}")


def test_the_first_that_delivers_wins_and_later_ones_are_not_asked(asked):
    sources = [source("broken", asked, OSError("unplugged")), source("right", asked), source("late", asked)]

    assert first_that_delivers("a letter", sources) == "right"
    assert asked == ["broken", "right"]


def test_if_none_delivers_each_is_named_with_reason_and_remedy(asked):
    sources = [source("first", asked, OSError("unplugged")), source("second", asked, ValueError())]

    with pytest.raises(DataUnavailableError) as caught:
        first_that_delivers("a letter", sources, "Do without.")

    assert str(caught.value).splitlines() == [
        "no source could deliver a letter. Tried, in this order:",
        "  - first: unplugged",
        "    -> mend first",
        "  - second: ValueError",
        "    -> mend second",
        "Do without.",
    ]


def test_a_slow_one_says_why_no_quicker_one_delivered(asked):
    slow = replace(source("site", asked), slow="hours")
    with pytest.warns(UserWarning, match=r"(?s)from the site: hours\. Quicker:.*- copy: is not there.*-> mend copy"):
        first_that_delivers("a letter", [source("copy", asked, FileNotFoundError("is not there")), slow])


def test_a_slow_one_that_is_the_only_one_needs_no_excuse(asked, recwarn):
    first_that_delivers("a letter", [replace(source("site", asked), slow="hours")])
    assert not recwarn.list


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("disk full")], ids=["interrupt", "full disk"])
def test_after_an_interrupt_or_with_nowhere_to_write_no_other_is_asked(asked, error):
    with pytest.raises(type(error)):
        first_that_delivers("a letter", [source("one", asked, error), source("next", asked)])
    assert asked == ["one"]
