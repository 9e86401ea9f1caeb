"""Strict, memory-mapped reading of the weights of one part of a model: safetensors, one file or shards.

Knows no model family: the caller says which names and shapes to expect. The format is simple (eight bytes of length, a
JSON header, the tensors end to end), so it is parsed here, which lets errors name the damaged file and what is wrong.
"""

import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.errors import ModelError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 100_000_000
"""Largest header in bytes that is accepted, as in the format's own library."""
SHOWN = 6
"""Names that an error message lists before it only counts the rest."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and shape of a stored tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Stored:
    info: TensorInfo
    file: Path
    offset: int

    @property
    def mappable(self) -> bool:
        return self.info.nbytes > 0 and self.offset % self.info.dtype.itemsize == 0


class PartWeights:
    """The tensors of one part: `<stem>.safetensors`, or `<stem>.safetensors.index.json` and its shards.

    Opening reads every header, which detects missing, truncated and foreign files; tensors are read on demand.
    Thread-safe.
    """

    def __init__(self, path: Path, stem: str = "model") -> None:
        """Open a directory, or a single `.safetensors` or `.index.json` file; ModelError names what is wrong in it."""
        self.path = path
        source = path / f"{stem}.safetensors" if path.is_dir() else path
        index = path / f"{stem}.safetensors.index.json"
        if path.is_dir() and index.is_file() and not source.is_file():
            source = index
        if not source.is_file():
            beside = f" and {index.name}" if path.is_dir() else ""
            raise ModelError(f"{source}{beside} is missing; copy the weights again")
        self._stored = _read_index(source) if source.name.endswith(".json") else _read_header(source)

    def names(self) -> tuple[str, ...]:
        """All tensor names, in stored order."""
        return tuple(self._stored)

    def info(self, name: str) -> TensorInfo:
        """Element type and shape of a tensor; ModelError if there is no such tensor."""
        return self._find(name).info

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; ModelError if there is no such tensor."""
        return self._find(name).info.shape

    def load(
        self,
        names: Iterable[str],
        dtype: torch.dtype | None = torch.float32,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors by name as `dtype` (None: as stored), every one checked to be finite.

        A tensor already stored as `dtype` is a private memory map of its file, any other a converted copy. shapes:
        expected shapes of some of them. Raises ModelError naming file and tensor when one is missing, not finite, or
        of an unexpected shape.
        """
        maps: dict[Path, mmap.mmap] = {}
        out = {}
        for name in names:
            stored = self._find(name)
            expected = (shapes or {}).get(name)
            if expected is not None and tuple(expected) != stored.info.shape:
                raise ModelError(f"{stored.file}: {name!r} has shape {stored.info.shape}, expected {tuple(expected)}")
            if dtype in (None, stored.info.dtype) and stored.mappable:
                out[name] = _mapped(stored, maps)
                check_finite(out[name], name, stored.file)
            else:
                tensor = self.read(name)
                out[name] = tensor if dtype is None else tensor.to(dtype)
        return out

    def read(self, name: str) -> Tensor:
        """A copy of one tensor in its stored dtype, read without a memory map; ModelError when it is not finite."""
        stored = self._find(name)
        tensor = torch.zeros(stored.info.shape, dtype=stored.info.dtype)
        if stored.info.nbytes:
            with stored.file.open("rb") as file:
                file.seek(stored.offset)
                got = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
            if got != stored.info.nbytes:
                raise ModelError(f"{stored.file} is truncated inside {name!r}; copy the file again")
        check_finite(tensor, name, stored.file)
        return tensor

    def _find(self, name: str) -> _Stored:
        if name not in self._stored:
            raise ModelError(f"{self.path} holds no tensor {name!r}, only {shown(self._stored)}")
        return self._stored[name]


def compare_names(
    given: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    optional: Sequence[str] = (),
) -> None:
    """Raise ModelError naming every missing, unknown and misshapen tensor; those in `optional` may be missing."""
    missing = [name for name in expected if name not in given and name not in optional]
    extra = [name for name in given if name not in expected]
    wrong = [
        f"{name} {tuple(given[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    kinds = {"missing": missing, "unknown": extra, "wrong shape": wrong}
    problems = [f"{kind} {shown(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}. Weights and config must be of the same model")


def shown(names: Iterable[str]) -> str:
    """Names for an error message: the first few, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more if listed else "nothing"


def check_finite(tensor: Tensor, name: str, where: Path) -> None:
    """Raise ModelError naming the tensor if it holds NaN or infinity."""
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        raise ModelError(f"{where}: tensor {name!r} holds NaN or infinity; the file is damaged or training diverged")


def _mapped(stored: _Stored, maps: dict[Path, mmap.mmap]) -> Tensor:
    if stored.file not in maps:
        with stored.file.open("rb") as file:
            # A private copy-on-write map: pages are shared until someone writes, and nobody can write to the file.
            maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    info = stored.info
    flat = torch.frombuffer(maps[stored.file], dtype=info.dtype, count=math.prod(info.shape), offset=stored.offset)
    return flat.reshape(info.shape)


def _read_index(path: Path) -> dict[str, _Stored]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not an index of shards ({error}); copy the file again") from error
    if any(not isinstance(file, str) or Path(file).name != file for file in files):
        raise ModelError(f"{path} names shards outside its directory: {shown(map(str, files))}")
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise ModelError(f"{path.parent}: missing shard {shown(missing)}; copy all {len(files)} shards of {path.name}")
    found = {name: stored for file in files for name, stored in _read_header(path.parent / file).items()}
    unlisted = [name for name in found if weight_map.get(name) != found[name].file.name]
    absent = [name for name in weight_map if name not in found]
    if unlisted or absent:
        raise ModelError(f"{path}: not in the shards: {shown(absent)}; in a shard but not listed: {shown(unlisted)}")
    return found


def _read_header(path: Path) -> dict[str, _Stored]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise ValueError(f"its header would take {length} of {size} bytes")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        found = [_entry(name, entry, path, 8 + length) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}; copy the file again") from error
    end = 8 + length
    for stored in sorted(found, key=lambda stored: stored.offset):
        if stored.offset != end:
            raise ModelError(f"{path}: tensor {stored.info.name!r} overlaps or leaves a gap; the file is damaged")
        end += stored.info.nbytes
    if end != size:
        cut = next((s.info.name for s in found if s.offset + s.info.nbytes > size), None)
        where = f"truncated inside {cut!r}" if cut else "longer than its header says"
        raise ModelError(f"{path} is {where}: {size} bytes instead of {end}; copy the file again")
    return {stored.info.name: stored for stored in found}


def _entry(name: str, entry: Mapping[str, Any], path: Path, start: int) -> _Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} has element type {entry['dtype']!r}, expected one of {sorted(DTYPES)}")
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if any(type(value) is not int or value < 0 for value in (*shape, first, last)):
        raise ValueError(f"tensor {name!r} has shape {shape} at {first}..{last}")
    info = TensorInfo(name, DTYPES[entry["dtype"]], tuple(shape))
    if info.nbytes != last - first:
        raise ValueError(f"tensor {name!r} of shape {info.shape} has {last - first} bytes, expected {info.nbytes}")
    return _Stored(info, path, start + first)
