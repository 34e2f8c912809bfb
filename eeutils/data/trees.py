"""A tree of files to read from, unpacked or in a zip: what is in it, and the bytes of each."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from zipfile import BadZipFile, ZipFile

from eeutils.errors import IntegrityError


@dataclass(frozen=True)
class FileTree:
    """Files by name.

    Attributes:
        where: how messages call it.
        names: relative to the tree's top, with "/" between folders.
        read: gives a file's bytes; from several threads if need be.
    """

    where: str
    names: frozenset[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        """A file of text.

        Raises:
            IntegrityError: if it is not there, or no text.
        """
        if name not in self.names:
            raise IntegrityError(f"{self.where} has no {name}")
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{name} in {self.where} is no text: {error}") from error


def folder_tree(root: Path) -> FileTree:
    """The files below `root`.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    names = frozenset(
        Path(folder, name).relative_to(root).as_posix() for folder, _, files in os.walk(root) for name in files
    )
    return FileTree(str(root), names, lambda name: (root / name).read_bytes())


@contextmanager
def zip_tree(path: Path, top: str) -> Iterator[FileTree]:
    """The files below the folder `top` of a zip; nothing is unpacked.

    Raises:
        IntegrityError: if the file is no zip, or a name in it leads out of it.
    """
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        raise IntegrityError(f"{path} is not a readable zip: {error}") from error
    with archive:
        outside = [name for name in archive.namelist() if _leads_out(name)]
        if outside:
            raise IntegrityError(f"{path} has files that lead out of it: {outside[:3]}")
        files = [name for name in archive.namelist() if name.startswith(f"{top}/") and not name.endswith("/")]
        names = frozenset(name.removeprefix(f"{top}/") for name in files)
        yield FileTree(str(path), names, lambda name: archive.read(f"{top}/{name}"))


def _leads_out(name: str) -> bool:
    path = PureWindowsPath(name)  # takes "/" and "\\" alike, and knows drives
    return bool(path.anchor) or ".." in path.parts
