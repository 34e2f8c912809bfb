"""Tensors out of files that `torch.save` wrote, without running anything in them.

A pickle is a program: loading it the usual way imports and calls whatever it names. Here its classes stay names, its
modules become stubs that are walked for parameters and buffers, and tensors are cut out of the storages with every
offset, stride and size checked. Both of torch's formats are read: the zip file, and the row of pickles and raw
storages from before torch 1.6.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from eeutils.download import check_no_web_page
from eeutils.errors import require
from eeutils.files import reading
from eeutils.weights.unpickler import InertUnpickler, Stub

_MAX_BYTES = 1 << 30  # a ResNet18 has 45 MB
_MAX_PICKLE = 1 << 20  # the pickle of a whole EfficientNetV2-L has half of it
_BUDGET = 8  # characters of names and bytes of tensors, for each byte of the file
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


class PickledTensors(dict[str, Tensor]):
    """Parameters and persistent buffers by name, in the order of the network's `state_dict()`."""

    foreign: tuple[str, ...] = ()  # classes and functions outside torch that the file names; none was imported


def read_pickled_tensors(path: Path | str) -> PickledTensors:
    """Read the tensors of a saved network, or of a saved dict of tensors or networks, onto the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        IntegrityError: if it is damaged, too large, of another kind, holds no tensors, or calls a function that saved
            networks do not call. Nothing was executed.
    """
    path = Path(path)
    check_no_web_page(path)
    size = path.stat().st_size
    with reading(path), path.open("rb") as file:
        require(size <= _MAX_BYTES, f"it has {size:,} bytes, at most {_MAX_BYTES:,} are read")
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        return _read_zip(file, size) if is_zip else _read_legacy(file, size)


def _read_zip(file: BinaryIO, size: int) -> PickledTensors:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        require(len(pickles) == 1, "the zip file has no data.pkl of torch's")
        root = pickles[0].removesuffix("data.pkl")
        is_little = f"{root}byteorder" not in names or _member(archive, f"{root}byteorder") == b"little"
        require(is_little, "it was written on a big-endian machine")
        require(archive.getinfo(pickles[0]).file_size <= _MAX_PICKLE, "its pickle is too large")
        require(sum(each.file_size for each in archive.infolist()) <= size, "its members overlap or are compressed")

        def read_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            return _row(_member(archive, f"{root}data/{key}"), dtype, numel)

        unpickler = InertUnpickler(io.BytesIO(_member(archive, pickles[0])), read_storage)
        return _tensors(unpickler.load(), size, unpickler)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    # torch never compresses: what is compressed is not torch's, and might unfold to any size.
    is_stored = archive.getinfo(name).compress_type == zipfile.ZIP_STORED
    require(is_stored, "a member of the zip file is compressed")
    return archive.read(name)


def _read_legacy(file: BinaryIO, size: int) -> PickledTensors:
    allocated = 0

    def allocate(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """Make room for a storage, whose content follows the pickle."""
        nonlocal allocated
        allocated += numel * dtype.itemsize
        require(allocated <= size, "its storages are larger than the file")
        return torch.empty(numel, dtype=dtype)

    def unpickled() -> tuple[Any, InertUnpickler]:
        start = file.tell()
        unpickler = InertUnpickler(head := io.BytesIO(file.read(_MAX_PICKLE)), allocate)
        value = unpickler.load()
        file.seek(start + head.tell())
        return value, unpickler

    (magic, _), (version, _), (system, _) = (unpickled() for _ in range(3))
    require((magic, version) == (_LEGACY_MAGIC, _LEGACY_VERSION), "it does not begin as torch's files do")
    is_little = type(system) is dict and system.get("little_endian") is True
    require(is_little, "it was not written on a little-endian machine")
    (saved, unpickler), (keys, _) = unpickled(), unpickled()
    are_known = type(keys) is list and all(type(key) is str for key in keys) and {*keys} == unpickler.storages.keys()
    require(are_known, "its list of storages does not fit its tensors")
    for key in keys:
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        storage.copy_(_row(file.read(storage.nbytes), storage.dtype, numel))
    return _tensors(saved, size, unpickler)


def _row(content: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    require(len(content) == numel * dtype.itemsize, f"a storage has {len(content)} bytes, its tensors say otherwise")
    if not content:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # a byte other than 0 and 1 would be an invalid bool
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(content), dtype=dtype)


def _tensors(saved: Any, size: int, unpickler: InertUnpickler) -> PickledTensors:
    """Walk depth first, without recursion: parameters, buffers, then the modules inside, as `state_dict()` does."""
    require(type(saved) in (dict, Stub), f"it holds a {type(saved).__name__}, no network")
    tensors = PickledTensors()
    tensors.foreign = tuple(sorted(unpickler.foreign))
    waiting, budget = [("", saved)], _BUDGET * size
    while waiting:
        prefix, module = waiting.pop()
        parts, hidden = _parts(module)
        budget -= sum(map(len, parts)) + len(hidden)
        require(budget > 0, "its modules are nested without end, or its tensors share too much")
        hidden = {name for name in hidden if type(name) is str}
        inside = []
        for name, value in (item for part in parts for item in part.items()):
            budget -= len(prefix) + len(name)
            if type(value) is Tensor and name not in hidden:
                tensors[prefix + name] = value
                budget -= value.nbytes
            elif type(value) in (dict, Stub):
                inside.append((f"{prefix}{name}.", value))
        waiting.extend(reversed(inside))
    require(budget > 0, "its tensors share too much")
    require(bool(tensors), "it holds no tensors")
    return tensors


def _parts(module: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the dicts of parameters, buffers and modules, and the names of the buffers that no state dict has."""
    if type(module) is dict:
        return [module], []
    state = module.state or {}
    parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    hidden = state.get("_non_persistent_buffers_set")
    return [part for part in parts if type(part) is dict], hidden if type(hidden) is list else []
