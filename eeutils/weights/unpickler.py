"""An unpickler that imports and calls nothing, for the tensors of pickles that others wrote."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from eeutils.errors import require

ReadStorage = Callable[[str, torch.dtype, int], Tensor]
"""Key, dtype and length of a storage -> its numbers, a row."""

_MAX_NUMBER = 1 << 30  # of a size, stride, offset or length
_MAX_ARGUMENTS = 10
_MAX_DIMENSIONS = 8
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


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the file names."""

    name: str


@dataclass(eq=False, slots=True)
class Stub:
    """An object of a class that is not imported, and its attributes; items, if it is a list or dict, are not kept."""

    name: str
    state: dict[str, Any] | None = None

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Cut a tensor out of a storage; torch raises if it reaches beyond."""
    require(type(storage) is Tensor, "a tensor is not backed by a storage")
    for numbers in ((offset,), size, stride):
        _check_naturals(numbers)
    # A tensor larger than its storage (stride 0) is no parameter, but would be a cheap way to fill the memory.
    require(math.prod(size) <= storage.numel(), "a tensor is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _check_naturals(values: Any) -> None:
    is_short = type(values) is tuple and len(values) <= _MAX_DIMENSIONS
    are_natural = is_short and all(type(value) is int and 0 <= value <= _MAX_NUMBER for value in values)
    require(are_natural, "a size, stride, offset or length is out of range")  # the values may be of any length


# Calls that are carried out, by functions of ours.
_BUILDERS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": lambda values=(): values,
    "collections.OrderedDict": lambda: {},
    "builtins.set": lambda values=(): values,
    "copyreg._reconstructor": lambda kind, *_: Stub(kind.name),
}
# Other calls that saved networks make; nothing reads what they return.
_HARMLESS = {
    *("builtins.frozenset", "builtins.complex", "builtins.slice", "_codecs.encode", "functools.partial"),
    *("collections.defaultdict", "collections.deque", "torch.device", "numpy.dtype"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
}
_CALLABLE = _BUILDERS.keys() | _HARMLESS


class InertUnpickler(pickle._Unpickler):
    """Python's unpickler, made inert: it imports, calls, hashes and allocates nothing because a file says so.

    The one in C would not do: it hashes any key of a dict, and allocates a memo as long as the file says.
    """

    def __init__(self, file: BinaryIO, read_storage: ReadStorage) -> None:
        super().__init__(file, encoding="utf-8")
        self.read_storage = read_storage
        self.foreign: set[str] = set()
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Global:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        found = Global(f"{module}.{name}")
        if module.partition(".")[0] != "torch" and found.name not in _CALLABLE:
            self.foreign.add(found.name)
        return found

    def persistent_load(self, identifier: Any) -> Any:
        require(type(identifier) is tuple and len(identifier) in (4, 5, 6), "it refers to something that is no storage")
        if identifier[0] == "module":  # before torch 1.6: a class and its source text
            return identifier[1]
        label, kind, key, _, numel, *view = identifier
        is_known = label == "storage" and type(kind) is Global and kind.name in _STORAGE_DTYPES and type(key) is str
        require(is_known, "a storage is of an unknown kind")
        require(all(part is None for part in view), "a storage is part of another one")
        _check_naturals((numel,))
        dtype = _STORAGE_DTYPES[kind.name]
        if key not in self.storages:
            self.storages[key] = self.read_storage(key, dtype, numel)
        storage = self.storages[key]
        require((storage.dtype, len(storage)) == (dtype, numel), "a storage is of two kinds")
        return storage

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        name = function.name if type(function) is Global else type(function).__name__
        is_usual = type(args) is tuple and len(args) <= _MAX_ARGUMENTS and name in _CALLABLE
        require(is_usual, f"it calls {name}, which saved networks do not")
        self.append(_BUILDERS[name](*args) if name in _BUILDERS else Stub(name))

    def make_object(self) -> None:
        _args, kind = self.stack.pop(), self.stack.pop()
        self.append(Stub(kind.name))

    def make_object_with_keywords(self) -> None:
        self.stack.pop()
        self.make_object()

    def set_state(self) -> None:
        state = self.stack.pop()
        state = state[0] if type(state) is tuple and state else state  # attributes, then those in slots
        target = self.stack[-1]
        require(type(target) in (Stub, dict), "it sets the state of what has none")
        if type(target) is Stub and type(state) is dict:
            target.state = state

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items_of_top([key, value])

    def set_items(self) -> None:
        self.set_items_of_top(self.pop_mark())

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items_of_top(items)

    def set_items_of_top(self, items: list[Any]) -> None:
        target = self.stack[-1]
        require(type(target) in (Stub, dict), "it sets items of what has none")
        if type(target) is dict:
            # Names alone are of use. Other keys are not hashed, which for some would take for ever.
            target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)

    def refuse(self) -> None:
        require(False, "it uses an opcode that saved networks do not")

    dispatch = {  # noqa: RUF012, as in the base class
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: call,
        pickle.NEWOBJ[0]: make_object,
        pickle.NEWOBJ_EX[0]: make_object_with_keywords,
        pickle.BUILD[0]: set_state,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.DICT[0]: make_dict,
        pickle.EMPTY_SET[0]: pickle._Unpickler.load_empty_list,
        pickle.ADDITEMS[0]: pickle._Unpickler.load_appends,
        pickle.FROZENSET[0]: pickle._Unpickler.load_list,
        **dict.fromkeys((pickle.INST[0], pickle.OBJ[0], pickle.PERSID[0], pickle.BYTEARRAY8[0]), refuse),
        **dict.fromkeys((pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]), refuse),
        **dict.fromkeys((pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0]), refuse),
    }
