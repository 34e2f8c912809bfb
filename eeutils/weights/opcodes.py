"""A pickle as plain values: its opcodes are interpreted here, and none of them can call or import anything.

Python's own unpickler, however much its `find_class` is restricted, calls what the file says (REDUCE, NEWOBJ,
`__setstate__`), hashes what the file makes a key, and allocates a memo as long as the file says. Here
`pickletools.genops` reads the opcodes, and each becomes an operation on lists, dicts and the inert classes below.
A class or function is only ever a name; "calling" one makes an `Instance` that remembers the name and the arguments.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from eeutils.errors import IntegrityError

# A module of 2020 with two hundred tensors takes about 20,000 opcodes.
_MAX_OPCODES = 2_000_000


@dataclass(frozen=True)
class GlobalName:
    """A class or function that the file names, "module.name"; it is never looked up."""

    dotted: str


@dataclass(frozen=True)
class Persistent:
    """A reference to something outside the pickle; for torch, a storage."""

    id: Any


@dataclass(eq=False)
class Instance:
    """What calling `maker` with `args` would have made, and the state it would have been given."""

    maker: GlobalName
    args: tuple
    state: dict[str, Any] = field(default_factory=dict)
    items: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds.

    Attributes:
        value: numbers, strings, bytes, None, tuples, lists (sets too), dicts (an OrderedDict too), `GlobalName`,
            `Instance` and `Persistent`. Parts may contain each other: never print, compare or hash them whole.
        references: every reference in it, in order.
    """

    value: Any
    references: tuple[Persistent, ...]


def read_pickle(file: BinaryIO) -> Unpickled:
    """The pickle at the file's position, which then is just behind it.

    Raises:
        IntegrityError: if this is no pickle, a truncated one, or one that uses what saved networks do not.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MAX_OPCODES:
                raise IntegrityError(f"the pickle has more than {_MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return Unpickled(machine.result(), tuple(machine.references))
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise IntegrityError(f"not a readable pickle: {error!r}") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.references: list[Persistent] = []

    def result(self) -> Any:
        if self.outer or len(self.stack) != 1:
            raise IntegrityError("the pickle does not end with one value")
        return self.stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif opcode in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[opcode]())
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self, argument)
        elif opcode not in _NO_OPERATION:
            raise IntegrityError(f"the pickle uses {opcode}, which saved networks do not")

    # Stack and memo.

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self, _: None) -> None:
        self.since_mark()

    def dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def get(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])

    def put(self, index: int) -> None:
        self.memo[int(index)] = self.stack[-1]

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # Containers.

    def tuple_of(self, count: int) -> None:
        values = self.stack[-count:]
        if len(values) != count:
            raise IntegrityError("the pickle takes more than there is")
        self.stack[-count:] = [tuple(values)]

    def tuple_since_mark(self, _: None) -> None:
        values = tuple(self.since_mark())
        self.stack.append(values)

    def list_since_mark(self, _: None) -> None:
        values = self.since_mark()
        self.stack.append(values)

    def dict_since_mark(self, _: None) -> None:
        values = self.since_mark()
        self.stack.append({})
        self._set_items(values)

    def append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def extend(self, _: None) -> None:
        self._extend(self.since_mark())

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self, _: None) -> None:
        self._set_items(self.since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Instance:  # a list of a class of its own: nothing here reads its items
            raise IntegrityError(f"the pickle appends to a {type(target).__name__}")

    def _set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if type(target) is Instance else target
        if type(items) is not dict:
            raise IntegrityError(f"the pickle sets items of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Other keys are not hashed: a deeply nested one would overflow the C stack. They are kept, out of reach.
            items[key if type(key) in _PLAIN_KEYS else object()] = value

    # Names, calls, state.

    def global_name(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(GlobalName(f"{module}.{name}"))

    def global_from_stack(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise IntegrityError("the pickle names a class by something else than strings")
        self.stack.append(GlobalName(f"{module}.{name}"))

    def persistent(self, identifier: Any) -> None:
        self.references.append(Persistent(identifier))
        self.stack.append(self.references[-1])

    def persistent_from_stack(self, _: None) -> None:
        self.persistent(self.stack.pop())

    def call(self, _: None) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self.stack.append(_made_by(maker, args))

    def call_with_keywords(self, _: None) -> None:
        self.stack.pop()
        self.call(None)

    def instance_from_mark(self, argument: str) -> None:
        args = tuple(self.since_mark())
        self.global_name(argument)
        self.stack.append(_made_by(self.stack.pop(), args))

    def object_from_mark(self, _: None) -> None:
        maker, *args = self.since_mark()
        self.stack.append(_made_by(maker, tuple(args)))

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Instance:
            for part in state if type(state) is tuple else (state,):  # a tuple: attributes, then those in slots
                if type(part) is dict:
                    target.state.update(part)
        elif type(target) is not dict:  # an OrderedDict's attributes are of no use here
            raise IntegrityError(f"the pickle sets the state of a {type(target).__name__}")


def _made_by(maker: Any, args: Any) -> Any:
    # Before 1.6 torch wrote a class as a reference that also holds its source code.
    if type(maker) is Persistent and type(maker.id) is tuple and maker.id[:1] == ("module",) and len(maker.id) > 1:
        maker = maker.id[1]
    if type(maker) is not GlobalName or type(args) is not tuple:
        raise IntegrityError(f"the pickle calls a {type(maker).__name__} with a {type(args).__name__}")
    if maker.dotted != "collections.OrderedDict":
        return Instance(maker, args)
    pairs = args[0] if args else []
    return {key: value for key, value in pairs if type(key) in _PLAIN_KEYS}


_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_NO_OPERATION = {"PROTO", "FRAME", "STOP"}
_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    **dict.fromkeys(("LIST", "FROZENSET"), _Machine.list_since_mark),
    "DICT": _Machine.dict_since_mark,
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.extend),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.global_from_stack,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_from_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "INST": _Machine.instance_from_mark,
    "OBJ": _Machine.object_from_mark,
    "BUILD": _Machine.build,
}
