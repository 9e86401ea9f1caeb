"""Tables of a stage file read into dataclasses, checked to the last field; knows no stage and no objective."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vino_rt.errors import UsageError

T = TypeVar("T")
PLAIN = {int: "a whole number", str: "a text", bool: "true or false"}


def take_table(table: Mapping[str, Any], owner: type[T], where: str, prefix: str | None = None) -> T:
    """Make the dataclass `owner` from a table of a stage file; lists become tuples, inner tables dataclasses.

    Values must be of their field's type: numbers (finite ones), texts, paths, flags, choices, lists and tables of them;
    `Any` is left as it is. Messages call the table `where` and put `prefix` before a field, `where` when left out.
    Raises UsageError naming every field that is unknown or missing, and the first value of another type.
    """
    known = {f.name: f for f in fields(owner)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    missing = [n for n, f in known.items() if n not in table and f.default is f.default_factory is MISSING]
    if unknown or missing:
        raise UsageError(f"{where}: unknown {unknown}, missing {missing}; legal are {', '.join(known)}")
    kinds, start = get_type_hints(owner), f"{where}: " if prefix is None else prefix
    return owner(**{name: _value(value, kinds[name], f"{start}{name}") for name, value in table.items()})


def need(legal: bool, name: str, value: object, expected: str) -> None:
    """UsageError naming the value and what is expected, unless it is legal."""
    if not legal:
        raise UsageError(f"{name} is {value!r}, expected {expected}")


def positive(value: float, name: str, where: str) -> None:
    """UsageError unless a number is above 0."""
    need(value > 0, f"{where}: {name}", value, "a number above 0")


def _value(value: Any, kind: Any, name: str) -> Any:
    """A value of the file as its field's type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        (kind,) = (k for k in inner if k is not NoneType)
        return _value(value, kind, name)
    if is_dataclass(kind):
        need(isinstance(value, Mapping), name, value, "a table")
        assert isinstance(kind, type)
        return take_table(value, kind, f"[{name}]", f"{name}.")
    if origin is Literal:
        need(isinstance(value, str) and value in inner, name, value, f"one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple:
        need(isinstance(value, list | tuple), name, value, "a list")
        need(inner[1:] == (...,) or len(value) == len(inner), name, value, f"{len(inner)} values")
        return tuple(_value(entry, inner[0], name) for entry in value)
    if origin is Mapping:
        need(isinstance(value, Mapping), name, value, "a table")
        return {key: _value(entry, inner[1], f"{name}.{key}") for key, entry in value.items()}
    if kind is float:
        need(type(value) in (int, float) and math.isfinite(value), name, value, "a number")
        return float(value)
    if kind is Path:
        need(isinstance(value, str), name, value, "a path")
        return Path(value)
    need(type(value) is kind, name, value, PLAIN[kind])
    return value
