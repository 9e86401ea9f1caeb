"""Tables of a stage file that objectives and data sources read themselves, checked strictly; knows no objective."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vino_rt.errors import UsageError

T = TypeVar("T")


def take_table(table: Mapping[str, Any], owner: type[T], where: str) -> T:
    """Make the dataclass `owner` from a table of a stage file; lists become tuples.

    Values must be of their field's type: numbers (finite ones), texts, flags, lists and tables of them, `Any` is left
    as it is. Raises UsageError naming every field that is unknown or missing, and the first value of another type.
    """
    known = {f.name: f for f in fields(owner)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    missing = [n for n, f in known.items() if n not in table and f.default is MISSING and f.default_factory is MISSING]
    if unknown or missing:
        raise UsageError(f"{where}: unknown {unknown}, missing {missing}; legal are {', '.join(known)}")
    kinds = get_type_hints(owner)
    return owner(**{name: _value(value, kinds[name], f"{where}: {name}") for name, value in table.items()})


def positive(value: float, name: str, where: str) -> None:
    """UsageError unless a number is above 0."""
    if not value > 0:
        raise UsageError(f"{where}: {name} is {value}, expected a number above 0")


def _value(value: Any, kind: Any, name: str) -> Any:
    """A value of the file as its field's type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        (kind,) = (k for k in inner if k is not NoneType)
        return _value(value, kind, name)
    if origin is tuple:
        _need(isinstance(value, list | tuple), value, name, "a list")
        return tuple(_value(entry, inner[0], name) for entry in value)
    if origin is Mapping:
        _need(isinstance(value, Mapping), value, name, "a table")
        return {key: _value(entry, inner[1], f"{name}.{key}") for key, entry in value.items()}
    if kind is float:
        _need(type(value) in (int, float) and math.isfinite(value), value, name, "a number")
        return float(value)
    _need(type(value) is kind, value, name, {int: "a whole number", str: "a text", bool: "true or false"}[kind])
    return value


def _need(legal: bool, value: object, name: str, expected: str) -> None:
    if not legal:
        raise UsageError(f"{name} is {value!r}, expected {expected}")
