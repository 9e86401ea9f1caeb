"""What a choice depends on: the sizes of a call, the device it runs on, what the caller needs. Values, no tensors."""

import math
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch

VERSIONED = ("torch", "triton")
"""Packages whose version decides how fast an implementation is."""


def row_class(rows: int) -> int:
    """The power of two nearest to a number of rows; 0 for none."""
    return 1 << round(math.log2(rows)) if rows > 0 else 0


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; `rows` are exact, tables know them by `row_class`."""

    dtype: torch.dtype
    rows: int
    channels: int
    """Of a head for `boundary_attention` and `qk_norm_rope`, of a row for the others."""
    heads: int = 1
    segments: int = 1
    """Of attention, without empty ones and padding; branches of `guide_and_step`."""
    variant: str = ""
    """`isolated` for attention with groups, `fp8` for `norm_modulate` that quantises, empty else."""

    def __str__(self) -> str:
        """Such as `bfloat16, 35,000 rows, 24 x 128, 3 segments, isolated`; one segment is not told."""
        size = f"{self.heads} x {self.channels}" if self.heads > 1 else f"{self.channels} channels"
        parts = [str(self.dtype).removeprefix("torch."), f"{self.rows:,} rows", size]
        parts += [count(self.segments, "segment")] if self.segments > 1 else []
        return ", ".join([*parts, self.variant] if self.variant else parts)


@dataclass(frozen=True)
class Device:
    """A device and the installation that serves it."""

    kind: str
    """`cuda` or `cpu`."""
    name: str = ""
    """Of the GPU, as its driver tells it."""
    capability: tuple[int, int] = (0, 0)
    parts: frozenset[str] = frozenset()
    """Of `triton`, `flash` and `cudnn`: what is there."""
    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """What this process sees of a device; asked once."""
        return _describe(device.type, device.index)


@dataclass(frozen=True)
class Needs:
    """What a caller asks of an implementation besides the sizes."""

    gradients: bool = False
    capture: bool = False
    """To be recorded into a CUDA graph."""
    host_bounds: bool = True
    """The segment bounds are known on the host, and hold as long as anything recorded from this call is used."""
    deterministic: bool = False
    """PyTorch was told to refuse what is not deterministic."""


@dataclass(frozen=True)
class Choice:
    """The implementation to call, by name, and why."""

    implementation: str
    reason: str


def count(number: int, what: str) -> str:
    """`1 segment`, `3 segments`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@cache
def _describe(kind: str, index: int | None) -> Device:
    if kind != "cuda":
        return Device(kind)
    parts = {
        "triton": find_spec("triton") is not None,
        "flash": torch.backends.cuda.is_flash_attention_available(),
        "cudnn": bool(torch.backends.cudnn.is_available()),  # type: ignore[no-untyped-call]
    }
    versions = tuple((name, metadata.version(name)) for name in VERSIONED if find_spec(name) is not None)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    there = frozenset(name for name, present in parts.items() if present)
    return Device(kind, properties.name, (properties.major, properties.minor), there, versions)
