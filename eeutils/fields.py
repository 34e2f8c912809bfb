"""Checks of values: of a type, in a range, one of several choices; and of the fields of config dataclasses."""

from collections.abc import Callable, Collection
from math import ceil, floor, inf, isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless `value`, the argument `name`, is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def check_type(name: str, value: object, kind: type, hint: str) -> None:
    """Raise TypeError unless `value`, the argument `name`, is a `kind`; `hint` says how to get one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}; {hint}")


def described(value: object) -> str:
    """Name the dtype and shape of a tensor, and the type of anything else."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def check_range(name: str, value: float, low: float, high: float = inf) -> None:
    """Raise ValueError unless `value`, the argument `name`, is a number in [low, high]."""
    if not low <= value <= high:
        least = f"{ceil(1000 * low) / 1000:.10g}"  # computed bounds are rounded to the side that is allowed
        wanted = f"{least} or more" if high == inf else f"in {least}..{floor(1000 * high) / 1000:.10g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


class Rule(NamedTuple):
    """A requirement on a value beyond its type: `Annotated[float, Rule("below 1", lambda value: value < 1)]`."""

    requirement: str  # completes "must be ..." in an error
    holds: Callable[[Any], bool]


Positive = Annotated[float, Rule("positive", lambda value: value > 0)]
NotNegative = Annotated[float, Rule("0 or more", lambda value: value >= 0)]
Share = Annotated[float, Rule("in [0, 1)", lambda value: 0 <= value < 1)]
Natural = Annotated[int, Rule("0 or more", lambda value: value >= 0)]
Count = Annotated[int, Rule("1 or more", lambda value: value >= 1)]


def check_fields(config: Any) -> None:
    """Raise ValueError unless every field of a dataclass fits its annotation; call it in `__post_init__`.

    Annotations may be bool, int, float (finite), str, Literal, tuple[item, ...], unions of these, classes, and `Rule`s.
    NumPy's numbers become Python's own; lists and arrays become tuples.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        kind, *rules = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        given = getattr(config, name)
        value = _converted(given, kind)
        broken = [_name(kind)] if value is None else [rule.requirement for rule in rules if not rule.holds(value)]
        if broken:
            raise ValueError(f"{name} must be {broken[0]}, got {given!r}")
        object.__setattr__(config, name, value)  # configs are frozen


def _converted(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or None if it is of another kind."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else None
    if origin is UnionType:
        return next((fit for each in arguments if (fit := _converted(value, each)) is not None), None)
    if origin is tuple:
        value = value.tolist() if hasattr(value, "tolist") else value
        items = [_converted(each, arguments[0]) for each in value] if isinstance(value, list | tuple) else [None]
        return None if None in items else tuple(items)
    if kind is int:
        return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if kind is float:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) else None
    return value if isinstance(value, kind) else None


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return "a finite float" if kind is float else f"of type {kind.__name__}"
    return str(kind).replace("typing.", "")
