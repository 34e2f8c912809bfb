"""Weights out of whole networks saved with `torch.save(net)`, without running anything that the file says.

Such a file is a pickle, which is a program: loading it the usual way imports and calls whatever it names. Here the
pickle becomes inert values (`eeutils.weights.opcodes`); the modules' own dicts are walked for parameters and buffers,
and these are cut out of the storages with every offset, stride and size checked. Both of torch's formats are read:
the zip file, and the row of pickles and raw storages that torch wrote before 1.6.
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.errors import IntegrityError
from eeutils.weights.fetch import check_no_web_page
from eeutils.weights.opcodes import GlobalName, Instance, Persistent, read_pickle

_MAX_BYTES = 1 << 30  # a ResNet18 has 45 MB
_MAX_MODULES = 10_000  # this and the next two bound cycles, and modules that contain each other many times over
_MAX_TENSORS = 100_000
_MAX_DEPTH = 100
_MAX_NAME = 200
_MAX_DIMENSIONS = 8
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

_STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSOR_MAKERS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER_MAKERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


@dataclass(frozen=True)
class _Storage:
    """A row of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _View:
    """A tensor, as a part of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickled_tensors(path: Path | str) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a saved network (or of a saved dict of tensors), by name, on the CPU.

    Names are those of the network's `state_dict()`, in its order. Nothing is imported or called.

    Args:
        path: of a file that `torch.save` wrote, in either format.

    Raises:
        FileNotFoundError: if there is no such file.
        IntegrityError: if it is a web page, damaged, too large, no such file, or holds no tensors.
    """
    path = Path(path)
    check_no_web_page(path)
    if path.stat().st_size > _MAX_BYTES:
        raise IntegrityError(f"{path} has {path.stat().st_size:,} bytes, more than any network expected here")
    data = path.read_bytes()
    try:
        return _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
    except IntegrityError as error:
        raise IntegrityError(f"{path} is not a readable saved network: {error}") from error
    except Exception as error:  # a damaged file makes zipfile, struct and torch raise what they please
        raise IntegrityError(f"{path} is not a readable saved network: {error!r}") from error


def _read_zip(data: bytes) -> dict[str, Tensor]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise IntegrityError("the zip file has no data.pkl of torch's")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and _member(archive, f"{root}byteorder") != b"little":
            raise IntegrityError("it was written on a big-endian machine")
        views = _views(read_pickle(io.BytesIO(_member(archive, pickles[0]))).value)
        names = {view.storage.key: f"{root}data/{view.storage.key}" for view in views.values()}
        if sum(archive.getinfo(name).file_size for name in names.values()) > len(data):
            raise IntegrityError("its members overlap")
        return _tensors(views, {key: _member(archive, name) for key, name in names.items()})


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    # torch never compresses: what is compressed is not torch's, and might unfold to any size.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise IntegrityError(f"{name} is compressed")
    return archive.read(name)


def _read_legacy(data: bytes) -> dict[str, Tensor]:
    file = io.BytesIO(data)
    if read_pickle(file).value != _LEGACY_MAGIC or read_pickle(file).value != _LEGACY_VERSION:
        raise IntegrityError("it does not begin as torch's files do")
    system = read_pickle(file).value
    if type(system) is not dict or system.get("little_endian") is not True:
        raise IntegrityError("it was not written on a little-endian machine")
    saved = read_pickle(file)
    # Storages that belong to no parameter or buffer have to be known too: they stand in the row with the others.
    references = [each for each in saved.references if type(each.id) is tuple and each.id[:1] == ("storage",)]
    storages = {storage.key: storage for storage in map(_storage, references)}
    keys = read_pickle(file).value
    if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
        raise IntegrityError("its list of storages does not fit its tensors")
    contents = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storages[key].numel:
            raise IntegrityError(f"storage {key} has {numel} elements, its tensors say {storages[key].numel}")
        contents[key] = file.read(storages[key].num_bytes)
    return _tensors(_views(saved.value), contents)


def _views(saved: Any) -> dict[str, _View]:
    """Name -> view, of everything in the saved object that a state dict would have."""
    if type(saved) not in (dict, Instance):
        raise IntegrityError(f"it holds a {type(saved).__name__}, no network")
    views = dict(_walk(saved))
    if not views:
        raise IntegrityError("it holds no tensors")
    return views


def _walk(saved: Any) -> Iterator[tuple[str, _View]]:
    """Depth first, without recursion: parameters, buffers, then the modules inside, as `state_dict()` has them."""
    waiting = [("", saved, 0)]
    modules = tensors = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        own = _own_tensors(module)
        modules, tensors = modules + 1, tensors + len(own)
        if modules + len(waiting) > _MAX_MODULES or tensors > _MAX_TENSORS or depth > _MAX_DEPTH:
            raise IntegrityError("its modules are nested without end")
        yield from ((prefix + name, view) for name, view in own)
        inside = [(prefix + name + ".", value, depth + 1) for name, value in _own_modules(module)]
        waiting.extend(reversed(inside))


def _own_tensors(module: Any) -> list[tuple[str, _View]]:
    if type(module) is dict:
        named = list(module.items())
    else:
        hidden = _names(module.state.get("_non_persistent_buffers_set"))
        buffers = [(name, value) for name, value in _dict(module, "_buffers") if name not in hidden]
        named = [*_dict(module, "_parameters"), *buffers]
    views = [(name, _view(value)) for name, value in named if _is_name(name)]
    return [(name, view) for name, view in views if view is not None]


def _own_modules(module: Any) -> list[tuple[str, Any]]:
    named = module.items() if type(module) is dict else _dict(module, "_modules")
    return [(name, value) for name, value in named if _is_name(name) and _is_module(value)]


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) <= _MAX_NAME


def _is_module(value: Any) -> bool:
    return type(value) is Instance and "_modules" in value.state


def _dict(module: Any, attribute: str) -> list[tuple[Any, Any]]:
    values = module.state.get(attribute) if type(module) is Instance else None
    return list(values.items()) if type(values) is dict else []


def _names(values: Any) -> list[str]:
    """A set of strings: our interpreter keeps it as a list, older protocols as a call of `set` with a list."""
    if type(values) is Instance and values.args:
        values = values.args[0]
    return [value for value in values if type(value) is str] if type(values) is list else []


def _view(value: Any) -> _View | None:
    """The view that a call of torch's rebuilding functions describes; None if the value is no such call."""
    if type(value) is Instance and value.maker.dotted in _PARAMETER_MAKERS:
        value = value.args[0]
    if type(value) is not Instance or value.maker.dotted not in _TENSOR_MAKERS:
        return None
    reference, offset, size, stride = value.args[:4]
    view = _View(_storage(reference), _natural(offset), _naturals(size), _naturals(stride))
    _check_bounds(view)
    return view


def _storage(reference: Any) -> _Storage:
    identifier = reference.id if type(reference) is Persistent else None
    if type(identifier) is not tuple or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise IntegrityError("a tensor is not backed by a storage")
    _, kind, key, _, numel, *view = identifier
    if type(kind) is not GlobalName or kind.dotted not in _STORAGE_DTYPES or not _is_name(key):
        raise IntegrityError("a storage is of a kind not known here")
    if any(part is not None for part in view):
        raise IntegrityError("a storage is part of another one")
    return _Storage(key, _STORAGE_DTYPES[kind.dotted], _natural(numel))


def _natural(value: Any) -> int:
    # The value itself stays out of the message: it may be anything, of any size.
    if type(value) is not int or not 0 <= value <= _MAX_BYTES:
        raise IntegrityError("a size, stride, offset or length is no natural number, or too large")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > _MAX_DIMENSIONS:
        raise IntegrityError("a size or stride is no short tuple")
    return tuple(_natural(value) for value in values)


def _check_bounds(view: _View) -> None:
    if len(view.size) != len(view.stride):
        raise IntegrityError(f"size {view.size} and stride {view.stride} differ in length")
    numel = math.prod(view.size)
    last = view.offset + sum((length - 1) * step for length, step in zip(view.size, view.stride, strict=True))
    # A tensor larger than its storage (stride 0) is no parameter, but would be a cheap way to fill the memory.
    if numel > view.storage.numel or (numel and last >= view.storage.numel):
        raise IntegrityError(f"a tensor of size {view.size} reaches beyond its storage of {view.storage.numel}")


def _tensors(views: dict[str, _View], contents: dict[str, bytes]) -> dict[str, Tensor]:
    rows: dict[_Storage, Tensor] = {}
    for view in views.values():
        if view.storage not in rows:
            rows[view.storage] = _row(view.storage, contents)
    return {name: rows[view.storage].as_strided(view.size, view.stride, view.offset) for name, view in views.items()}


def _row(storage: _Storage, contents: dict[str, bytes]) -> Tensor:
    content = contents.get(storage.key, b"")
    if len(content) != storage.num_bytes:
        raise IntegrityError(f"storage {storage.key} has {len(content)} bytes instead of {storage.num_bytes}")
    if not content:
        return torch.empty(0, dtype=storage.dtype)
    if storage.dtype == torch.bool:  # a byte other than 0 and 1 would be an invalid bool
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(content), dtype=storage.dtype)
