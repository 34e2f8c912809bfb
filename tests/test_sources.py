from dataclasses import replace

import pytest

from eeutils.download import Source, check_hash, first_that_delivers
from eeutils.errors import DataUnavailableError, IntegrityError, StorageError


@pytest.fixture
def asked() -> list[str]:
    """Names of the sources that were asked, in order."""
    return []


def source(name: str, asked: list[str], error: BaseException | None = None) -> Source[str]:
    """Make a source that delivers its name, or raises `error`."""

    def fetch() -> str:
        asked.append(name)
        if error is not None:
            raise error
        return name

    return Source(name, fetch, remedy=f"mend {name}")


def test_first_that_delivers_names_reasons_and_remedies(asked):
    sources = [source("first", asked, OSError("unplugged")), source("second", asked, ValueError())]
    with pytest.raises(DataUnavailableError, match=r"(?s)first: unplugged.*mend first.*second: ValueError.*Do without"):
        first_that_delivers("a letter", sources, "Do without.")


def test_first_that_delivers_warns_of_a_slow_source_unless_it_is_the_only_one(asked, recwarn):
    slow = replace(source("site", asked), slow="hours")
    first_that_delivers("a letter", [slow])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"(?s)site: hours.*copy: is not there.*mend copy"):
        first_that_delivers("a letter", [source("copy", asked, FileNotFoundError("is not there")), slow])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("disk full")], ids=["interrupt", "full disk"])
def test_first_that_delivers_stops_at_interrupts_and_full_disks(asked, error):
    with pytest.raises(type(error)):
        first_that_delivers("a letter", [source("one", asked, error), source("next", asked)])
    assert asked == ["one"]


@pytest.mark.parametrize(("content", "named"), [(b"other", "file"), (b"<html>sign in", "web page")])
def test_check_hash_refuses_another_file(tmp_path, content, named):
    path = tmp_path / "file"
    path.write_bytes(b"this")
    check_hash(path, "md5", "9e925e9341b490bfd3b4c4ca3b0c1ef2")
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=named):
        check_hash(path, "md5", "9e925e9341b490bfd3b4c4ca3b0c1ef2")
