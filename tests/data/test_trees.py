import io
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data.trees import folder_tree, zip_tree
from eeutils.errors import IntegrityError

names = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.txt", fullmatch=True)


@given(files=st.dictionaries(names, st.binary(max_size=20), max_size=8))
def test_a_folder_and_its_zip_are_the_same_tree(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    with ZipFile(root / "top.zip", "w") as archive:
        archive.writestr("readme.txt", b"beside the top")
        for name, content in files.items():
            archive.writestr(f"top/{name}", content)
    with ZipFile(root / "top.zip") as archive:
        archive.extractall(root)
    (root / "top").mkdir(exist_ok=True)
    unpacked = folder_tree(root / "top")
    with zip_tree(root / "top.zip", "top") as packed:
        for tree in (unpacked, packed):
            assert {name: tree.read(name) for name in tree.names} == files


@given(before=st.sampled_from(["", "top/", "a/b/"]), up=st.sampled_from(["..", "/", "\\", "c:"]), name=names)
def test_any_way_out_of_a_zip_is_refused(before, up, name):
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("top/x.txt", b"x")
        archive.writestr(
            f"../{name}" if up == ".." and not before else f"{before if up == '..' else ''}{up}/{name}", b""
        )
    with pytest.raises(IntegrityError, match="lead out of it"), zip_tree(buffer, "top"):
        pass


def test_a_text_that_is_not_there_or_is_none_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    tree = folder_tree(tmp_path)
    with pytest.raises(IntegrityError, match=r"has no b\.txt"):
        tree.text("b.txt")
    with pytest.raises(IntegrityError, match=r"a\.txt in .* is no text"):
        tree.text("a.txt")


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        folder_tree(Path("nowhere"))
