"""The table of measured times: `table.json` beside this file, checked field by field and written sorted.

    {"format": 1, "entries": [{"operation": "norm_modulate", "gpu": NAME, "capability": "9.0", "dtype": "bfloat16",
      "heads": 1, "channels": 3072, "rows": 32768, "segments": 1, "variant": "",
      "microseconds": {IMPLEMENTATION: {"median": 1.0, "p10": 0.9, "p90": 1.1, "runs": 20}, ...},
      "versions": {"torch": "2.13.0", ...}, "commit": HASH}]}

`rows` is a row class. Entries come only from `python -m bench kernels --write-table`, run on a GPU.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vino_kernels.choice.facts import row_class
from vino_kernels.choice.implementations import implementation_of
from vino_kernels.tiles import check_fields

PATH = Path(__file__).parent / "table.json"
FORMAT = 1
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
Key = tuple[str, str, str, str, int, int, int, int, str]
"""Operation, GPU, capability, dtype, heads, channels, row class, segments, variant."""


@dataclass(frozen=True)
class Time:
    """Microseconds of one call on the device: median, 10th and 90th percentile, and number of runs."""

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class Entry:
    """Measurements of one operation on one GPU in one shape class; fields as in the file."""

    operation: str
    gpu: str
    capability: str
    dtype: str
    heads: int
    channels: int
    rows: int
    segments: int
    variant: str
    microseconds: Mapping[str, Time]
    versions: Mapping[str, str]
    commit: str

    @property
    def key(self) -> Key:
        """The fields that identify an entry."""
        place = self.operation, self.gpu, self.capability, self.dtype
        return (*place, self.heads, self.channels, self.rows, self.segments, self.variant)


@dataclass(frozen=True, eq=False)
class Table:
    """Entries sorted by key, with unique keys."""

    entries: tuple[Entry, ...] = ()

    def merged(self, new: "Table") -> "Table":
        """This table with the entries of another, which replace those of the same key."""
        found = {entry.key: entry for entry in (*self.entries, *new.entries)}
        return Table(tuple(found[key] for key in sorted(found)))


@cache
def packaged() -> Table:
    """The table of this installation; ValueError as in `read_table`."""
    return read_table(PATH.read_text(encoding="utf-8"), PATH.name)


def read_table(text: str, where: str) -> Table:
    """Parse a table; `where` names it in messages.

    Raises ValueError for unknown or missing fields, another format, an unknown operation or implementation, times that
    are not finite and positive, rows that are not a row class, and duplicate entries.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    check_fields(data, {"format", "entries"}, where)
    if data["format"] != FORMAT or not isinstance(data["entries"], list):
        raise ValueError(f"{where}: format is {data['format']!r}; this version reads {FORMAT} with a list of entries")
    entries = [_entry(entry, f"{where}: entry {number}") for number, entry in enumerate(data["entries"])]
    keys = [entry.key for entry in entries]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"{where}: given twice: {twice[0]}")
    return Table().merged(Table(tuple(entries)))


def render(table: Table) -> str:
    """The text of a table, which `read_table` reads."""
    entries = [asdict(entry) for entry in Table().merged(table).entries]
    return json.dumps({"format": FORMAT, "entries": entries}, indent=1, ensure_ascii=False) + "\n"


def _entry(data: Any, where: str) -> Entry:
    names = {field.name: field.type for field in fields(Entry)}
    check_fields(data, set(names), where)
    for name, kind in names.items():
        if kind in (int, str) and type(data[name]) is not kind:
            raise ValueError(f"{where}: {name} is {data[name]!r}, expected {getattr(kind, '__name__', kind)}")
    if data["dtype"] not in DTYPES:
        raise ValueError(f"{where}: dtype is {data['dtype']!r}; legal are {', '.join(DTYPES)}")
    if row_class(data["rows"]) != data["rows"] or min(data[name] for name in ("heads", "channels", "segments")) < 1:
        raise ValueError(f"{where}: rows must be a power of two, heads, channels and segments at least 1")
    times, versions = data["microseconds"], data["versions"]
    if not isinstance(times, dict) or not times or not isinstance(versions, dict):
        raise ValueError(f"{where}: microseconds must name at least one implementation, versions be an object")
    if not all(isinstance(version, str) for version in versions.values()):
        raise ValueError(f"{where}: versions must be texts, got {versions}")
    read = {}
    for name, time in sorted(times.items()):
        try:
            implementation_of(data["operation"], name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        read[name] = _time(time, f"{where}: {name}")
    return Entry(**{**data, "microseconds": read, "versions": dict(sorted(versions.items()))})


def _time(data: Any, where: str) -> Time:
    check_fields(data, {field.name for field in fields(Time)}, where)
    for name, value in data.items():
        number = isinstance(value, int) if name == "runs" else isinstance(value, int | float)
        if isinstance(value, bool) or not number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{where}: {name} is {value!r}; it must be a finite number above zero")
    if not data["p10"] <= data["median"] <= data["p90"]:
        raise ValueError(f"{where}: the median {data['median']} lies outside {data['p10']} to {data['p90']}")
    return Time(**data)
