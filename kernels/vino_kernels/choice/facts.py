"""What a choice depends on: the sizes of a call, its device, and the caller's requirements. Values, no tensors."""

import math
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch

VERSIONED = ("torch", "triton")
"""Packages whose versions affect the speed of implementations."""


def row_class(rows: int) -> int:
    """The power of two nearest to a number of rows; 0 for 0."""
    return 1 << round(math.log2(rows)) if rows > 0 else 0


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; `rows` is exact, tables use its `row_class`."""

    dtype: torch.dtype
    rows: int
    channels: int
    """Channels of a head for `boundary_attention` and `qk_norm_rope`, of a row for the others."""
    heads: int = 1
    segments: int = 1
    """Segments of attention, excluding empty ones and padding; branches for `guide_and_step`."""
    variant: str = ""
    """`isolated` for attention with groups, `fp8` for `norm_modulate` with quantisation, otherwise empty."""

    def __str__(self) -> str:
        """For messages, such as `bfloat16, 35,000 rows, 24 x 128, 3 segments, isolated`."""
        size = f"{self.heads} x {self.channels}" if self.heads > 1 else f"{self.channels} channels"
        parts = [str(self.dtype).removeprefix("torch."), f"{self.rows:,} rows", size]
        parts += [count(self.segments, "segment")] if self.segments > 1 else []
        return ", ".join([*parts, self.variant] if self.variant else parts)


@dataclass(frozen=True)
class Device:
    """A device and the libraries available for it."""

    kind: str
    """`cuda` or `cpu`."""
    name: str = ""
    """Name of the GPU, as its driver reports it."""
    capability: tuple[int, int] = (0, 0)
    parts: frozenset[str] = frozenset()
    """Which of `triton`, `flash` and `cudnn` are available."""
    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """The facts of a device in this process; cached."""
        return _describe(device.type, device.index)


@dataclass(frozen=True)
class Needs:
    """Requirements of a caller besides the sizes."""

    gradients: bool = False
    capture: bool = False
    """The call must be recordable in a CUDA graph."""
    host_bounds: bool = True
    """The segment bounds are known on the host and stay valid as long as anything recorded from the call is in use."""
    deterministic: bool = False
    """PyTorch is set to refuse nondeterministic operations."""


@dataclass(frozen=True)
class Choice:
    """The name of the implementation to call, and the reason."""

    implementation: str
    reason: str


def count(number: int, what: str) -> str:
    """A number with its noun, such as `1 segment` or `3 segments`."""
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
