"""`manifest.json` of a directory of cubins: what is there, what it was made from, how each kernel is launched.

It is read without Triton. What a manifest does not say is not launched, and what does not fit it is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vino_kernels.ahead.resources import Resources
from vino_kernels.ahead.variant import Variant, variant_from_json, variant_to_json

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Made:
    """What the compiler made of a kernel, besides its cubin."""

    symbol: str
    """Name of the function in the cubin."""
    warps: int
    """Of a block: 32 threads each."""
    stages: int
    num_ctas: int
    """Blocks of a cluster; 1, or the loader refuses."""
    global_scratch: int
    profile_scratch: int
    """Bytes that a block wants at each of its two last parameters; 0, or the loader refuses."""
    used: Resources


@dataclass(frozen=True)
class Entry:
    """One cubin: the kernel as declared, and what the compiler made of it."""

    variant: Variant
    sha256: str
    made: Made

    @property
    def file(self) -> str:
        """Path of the cubin below the manifest's directory."""
        return f"sm_{self.variant.arch}/{self.variant.name}.cubin"


@dataclass(frozen=True)
class Manifest:
    """A directory of cubins."""

    triton: str
    """Version of the compiler."""
    ptxas: Mapping[str, str]
    """Version of the assembler, by architecture such as sm_90."""
    sources: Mapping[str, str]
    """By operation, `digest` of its folder."""
    entries: tuple[Entry, ...]

    @property
    def archs(self) -> tuple[int, ...]:
        """The architectures there are cubins for."""
        return tuple(sorted({entry.variant.arch for entry in self.entries}))


def digest(operation: str) -> str:
    """SHA-256 of the Python files of an operation's folder and of `grid.py`, which all launches use."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in (*sorted((package / operation).glob("*.py")), package / "grid.py"):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_json(path: Path, manifest: Manifest) -> None:
    """Write under a temporary name and rename: whoever opens `path` sees all of it or none."""
    entries = [
        {
            "variant": variant_to_json(entry.variant),
            "sha256": entry.sha256,
            "made": {**vars(entry.made), "used": vars(entry.made.used)},
        }
        for entry in manifest.entries
    ]
    text = json.dumps({"format": FORMAT, **vars(manifest), "entries": entries}, indent=1)
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; nothing is left behind where writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Manifest:
    """Raises FileNotFoundError where there is none, ValueError for another format or what is no manifest."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: python -m vino_kernels.ahead --out {path.parent} writes it")
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
        if given["format"] != FORMAT:
            raise ValueError(f"{path} has format {given['format']!r}, this version reads {FORMAT}: build again")
        entries = tuple(_entry(entry) for entry in given["entries"])
        return Manifest(given["triton"], dict(given["ptxas"]), dict(given["sources"]), entries)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no manifest of compiled kernels: {error!r}") from error


def _entry(value: Mapping[str, Any]) -> Entry:
    made = Made(**{**value["made"], "used": Resources(**value["made"]["used"])})
    return Entry(variant_from_json(value["variant"]), value["sha256"], made)
