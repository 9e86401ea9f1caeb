"""Write the files of a model directory: weights are streamed and hashed, and no partial files are left behind.

A file gets its final name when it is complete, a directory when all of its files are. Knows safetensors and paths, no
model.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vino_rt.errors import ModelError, OutputError
from vino_rt.weights import DTYPES, TensorInfo

CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000
ALIGNMENT = 64
CHUNK = 1 << 26


@dataclass(frozen=True)
class FileRecord:
    """Hash and size of a file, as model.json records them."""

    sha256: str
    bytes: int


def write_part(
    directory: Path,
    infos: Sequence[TensorInfo],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, FileRecord]:
    """Write a part as `model.safetensors`, or as shards with an index when it is larger than `shard_bytes`.

    `tensors` come in the order of `infos` and are consumed one at a time. Returns the records of the files by name.
    Raises ModelError when a tensor differs from what `infos` announced, OutputError when the disk is full or not
    writable; a file that could not be completed is removed.
    """
    shards = _shards(infos, shard_bytes)
    stream = iter(tensors)
    records: dict[str, FileRecord] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        records[name] = write_file(directory / name, _shard_bytes(shard, stream))
        weight_map.update({info.name: name for info in shard})
    if surplus := next(stream, None):
        raise ModelError(f"got {surplus[0]!r} after the last tensor that was announced")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(info.nbytes for info in infos)}, "weight_map": weight_map}
        name = "model.safetensors.index.json"
        records[name] = write_file(directory / name, [json.dumps(index, indent=1).encode()])
    return records


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file under a temporary name, hash it meanwhile, and rename it when complete; OutputError if that fails.

    Several processes may write the same file at once; the last one to finish wins.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            record = _write_hashed(file, chunks)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    return record


def _write_hashed(file: BinaryIO, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        for start in range(0, len(chunk), CHUNK):
            piece = chunk[start : start + CHUNK]
            digest.update(piece)
            file.write(piece)
        size += len(chunk)
    file.flush()
    os.fsync(file.fileno())
    return FileRecord(digest.hexdigest(), size)


def _shards(infos: Sequence[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in infos:
        if shards[-1] and filled + info.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += info.nbytes
    return shards


def _shard_bytes(shard: Sequence[TensorInfo], stream: Iterator[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for info in shard:
        start, end = end, end + info.nbytes
        header[info.name] = {"dtype": CODES[info.dtype], "shape": info.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for info in shard:
        name, tensor = next(stream, ("nothing", torch.empty(0)))
        if (name, tensor.dtype, tuple(tensor.shape)) != (info.name, info.dtype, info.shape):
            raise ModelError(f"got {name!r} {tensor.dtype} {tuple(tensor.shape)} where {info} was announced")
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def staged_directory(out: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Yield a new directory beside `out` that becomes `out` when the body ends, and is removed if it raises.

    replaces: name of a file that marks an existing directory as replaceable; None: only an empty directory may be
    replaced. Raises OutputError when `out` exists and may not be replaced, or its parent is missing or not writable.
    """
    out = out.resolve()
    check_replaceable(out, replaces)
    token = secrets.token_hex(4)
    staging, previous = (out.with_name(f".{out.name}.{token}.{role}") for role in ("partial", "previous"))
    try:
        staging.mkdir()
        yield staging
        if out.is_dir():
            out.rename(previous)
        staging.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {_reason(error)}") from error
    finally:
        if previous.is_dir() and not out.exists():
            previous.rename(out)
        for leftover in (staging, previous):
            shutil.rmtree(leftover, ignore_errors=True)


def check_replaceable(out: Path, replaces: str | None) -> None:
    """Raise OutputError unless `staged_directory` may put a directory at `out`."""
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is not a directory; create it first")
    try:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; name another directory") from error
    if free:
        return
    if not out.is_dir():
        raise OutputError(f"{out} exists and is not a directory; name a new directory")
    if replaces is None:
        raise OutputError(f"{out} exists; name another directory or allow it to be overwritten (--overwrite)")
    if not (out / replaces).is_file():
        raise OutputError(f"{out} is not empty and holds no {replaces}, so it is not replaced; name another directory")


def check_space(directory: Path, needed: int) -> None:
    """Raise OutputError when the file system of `directory` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OutputError(
            f"{directory} has {free / 1e9:.4f} GB free, {needed / 1e9:.4f} GB are needed; free space there or name "
            "another directory"
        )


def _reason(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    place = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{place}; " + ("free space there" if full else "choose a place that you may write to")
