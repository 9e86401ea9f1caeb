"""`manifest.json` of a directory of cubins: its kernels, what they were made from, and how each is launched.

Reading it needs no Triton. Only kernels in the manifest can be launched, and files that differ from it are refused.
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
    """The compiler's output for a kernel, apart from the cubin."""

    symbol: str
    """Name of the function in the cubin."""
    warps: int
    """Warps per block, of 32 threads each."""
    stages: int
    num_ctas: int
    """Blocks per cluster; the loader requires 1."""
    global_scratch: int
    profile_scratch: int
    """Bytes of scratch memory that a block needs behind each of the last two parameters; the loader requires 0."""
    used: Resources


@dataclass(frozen=True)
class Entry:
    """One cubin: the declared kernel and the compiler's output."""

    variant: Variant
    sha256: str
    made: Made

    @property
    def file(self) -> str:
        """Path of the cubin, relative to the manifest's directory."""
        return f"sm_{self.variant.arch}/{self.variant.name}.cubin"


@dataclass(frozen=True)
class Manifest:
    """The content of a directory of cubins."""

    triton: str
    """Version of Triton."""
    ptxas: Mapping[str, str]
    """Version of the assembler by architecture, such as sm_90."""
    sources: Mapping[str, str]
    """`digest` of each operation's folder."""
    entries: tuple[Entry, ...]

    @property
    def archs(self) -> tuple[int, ...]:
        """The architectures that have cubins."""
        return tuple(sorted({entry.variant.arch for entry in self.entries}))


def digest(operation: str) -> str:
    """SHA-256 of the Python files of an operation's folder and of `grid.py`, which all launches use."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in (*sorted((package / operation).glob("*.py")), package / "grid.py"):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_json(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically: under a temporary name, then renamed."""
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
    """Write a file atomically; nothing is left behind if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Manifest:
    """Read a manifest; FileNotFoundError if there is none, ValueError if it is damaged or of another format."""
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
