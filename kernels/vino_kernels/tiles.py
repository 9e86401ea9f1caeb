"""Measured tiles: `tiles.json` beside this file, which the operations' configs prefer to their own tables.

    {"format": 1, "entries": [{"operation": "boundary_attention.forward", "capability": "9.0", "dtype": "bfloat16",
      "size": 128, "length": "long", "tile": {"own": 128, "other": 64, "warps": 8, "stages": 3, "specialised": false},
      "microseconds": 7000.0, "gpu": NAME, "versions": {"torch": "2.13.0", ...}, "commit": HASH}]}

`size` is the channels of a head for `boundary_attention` and `qk_norm_rope`, the width of a row for the others.
Entries come only from `python -m bench tiles --write`, run on a GPU. Launches and the ahead-of-time build read the same
entries. The file is read once and checked field by field.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).parent / "tiles.json"
FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16")
LONG_ROWS = 4096
"""Sequences of at least this many rows count as long: attention's long tiles then fill a GPU."""
LENGTHS = ("short", "long")
ATTENTION = ("own", "other", "warps", "stages", "specialised")
FIELDS = {
    "boundary_attention.forward": ATTENTION,
    "boundary_attention.tma": ATTENTION,
    "qk_norm_rope": ("heads", "warps"),
    "norm_modulate": ("rows", "columns", "warps"),
    "norm_modulate.fp8": ("rows", "columns", "warps"),
    "gated_residual": ("rows", "columns", "warps"),
}
"""Fields of each operation's tile: those of `Tile` or `Config` in its `configs.py`."""
MOST_STAGES = 8
Key = tuple[str, str, str, int, str]
"""Operation, capability, dtype, size, length."""


@dataclass(frozen=True)
class Entry:
    """The fastest tile of one operation in one class of shapes on GPUs of one compute capability."""

    operation: str
    capability: str
    dtype: str
    size: int
    length: str
    tile: Mapping[str, int | bool]
    microseconds: float
    gpu: str
    versions: Mapping[str, str]
    commit: str

    @property
    def key(self) -> Key:
        """The key by which launches look up an entry."""
        return self.operation, self.capability, self.dtype, self.size, self.length


Entries = Mapping[Key, Entry]


def length_of(rows: Any) -> str:
    """`short` or `long`; a symbolic number of rows, from a program traced for all lengths, counts as long."""
    return "short" if isinstance(rows, int) and rows < LONG_ROWS else "long"


def measured(
    operation: str, capability: tuple[int, int] | None, dtype: torch.dtype, size: int, rows: Any
) -> Mapping[str, Any] | None:
    """The fastest measured tile; None if nothing was measured, or without a GPU (capability None)."""
    if capability is None:
        return None
    major, minor = capability
    key = operation, f"{major}.{minor}", str(dtype).removeprefix("torch."), size, length_of(rows)
    entry = packaged().get(key)
    return None if entry is None else entry.tile


@cache
def packaged() -> Entries:
    """The entries of this installation; ValueError as in `read`."""
    return read(PATH.read_text(encoding="utf-8"), PATH.name)


def read(text: str, where: str) -> Entries:
    """Parse the text of a file into entries by key; `where` names it in messages.

    Raises ValueError naming the entry for unknown or missing fields, an unknown operation, dtype or length, values of
    another type, tiles that no kernel supports, and duplicate keys.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    check_fields(data, {"format", "entries"}, where)
    if data["format"] != FORMAT or not isinstance(data["entries"], list):
        raise ValueError(f"{where}: format is {data['format']!r}; this version reads {FORMAT} with a list of entries")
    found: dict[Key, Entry] = {}
    for number, value in enumerate(data["entries"]):
        entry = _entry(value, f"{where}: entry {number}")
        if entry.key in found:
            raise ValueError(f"{where}: entry {number}: given twice: {entry.key}")
        found[entry.key] = entry
    return found


def render(entries: Entries) -> str:
    """The entries as the sorted text of a file, which `read` reads."""
    ordered = [asdict(entries[key]) for key in sorted(entries)]
    return json.dumps({"format": FORMAT, "entries": ordered}, indent=1, ensure_ascii=False) + "\n"


def _entry(data: Any, where: str) -> Entry:
    kinds = {field.name: field.type for field in fields(Entry)}
    check_fields(data, set(kinds), where)
    for name, kind in kinds.items():
        if kind in (int, str) and type(data[name]) is not kind:
            raise ValueError(f"{where}: {name} is {data[name]!r}, expected {getattr(kind, '__name__', kind)}")
    for name, legal in (("operation", FIELDS), ("dtype", DTYPES), ("length", LENGTHS)):
        if data[name] not in legal:
            raise ValueError(f"{where}: {name} is {data[name]!r}; legal are {', '.join(legal)}")
    if len(data["capability"].split(".")) != 2 or not data["capability"].replace(".", "").isdecimal():
        raise ValueError(f"{where}: capability is {data['capability']!r}; it must be two numbers such as 9.0")
    time, versions = data["microseconds"], data["versions"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time) or time <= 0:
        raise ValueError(f"{where}: microseconds is {time!r}; it must be a finite number above zero")
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError(f"{where}: versions is {versions!r}; it must be an object of texts")
    _check_tile(data["tile"], FIELDS[data["operation"]], f"{where}: tile")
    return Entry(**data)


def _check_tile(tile: Any, names: tuple[str, ...], where: str) -> None:
    """Raise ValueError unless a tile has these fields and all numbers but `stages` are powers of two."""
    check_fields(tile, set(names), where)
    for name, value in tile.items():
        if name == "specialised":
            right = isinstance(value, bool)
        else:
            whole = type(value) is int and value > 0
            right = whole and (value <= MOST_STAGES if name == "stages" else value & (value - 1) == 0)
        if not right:
            raise ValueError(f"{where}: {name} is {value!r}; no kernel takes that")


def check_fields(data: Any, names: set[str], where: str) -> None:
    """Raise ValueError unless data is a JSON object with exactly these fields; `where` names it in messages."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {type(data).__name__}, expected an object with {', '.join(sorted(names))}")
    unknown, missing = sorted(set(data) - names), sorted(names - set(data))
    if unknown or missing:
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
