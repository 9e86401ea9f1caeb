"""Tiles, warps and stages for each class of shapes. They are looked up: nothing is timed while a request runs.

Measured tiles (`vino_kernels/tiles.json`) come first, then the tables here, which are derived from the instructions,
registers and shared memory of the compiled kernels. `TABLE` fits every architecture: the smallest shared memory (sm_86,
sm_89 and sm_120 have 99 KiB for a block), and in 16 bits the registers. `WIDE` is for GPUs whose tensor cores read
shared memory (sm_90, sm_100). Float32 multiplies without tensor cores and keeps its operands in registers: its tiles
are small, and at head sizes above 128 attention itself spills them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vino_kernels.grid import Rule
from vino_kernels.tiles import LONG_ROWS, length_of, measured

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_LIMIT = 256
"""Largest head size: the accumulator of a larger one does not fit a tile's registers."""
SHORT = LONG_ROWS
"""Sequences with fewer rows than this use the tiles for short ones."""
SLOTS = 16
"""Minimum capacity of a kernel's segment and group tables: below it, a different number of references or branches needs
no other kernel. With 32, a gradient kernel spills registers."""
GRID: tuple[Rule, ...] = (("add", ("floor_div", "rows", "OWN"), "n_groups"), "heads")
"""Programs along tiles and heads, with `rows` the L of q [L, H, C]: shapes alone decide."""


@dataclass(frozen=True)
class Tile:
    """A program owns `own` rows (queries, or keys in their gradient) and loops over the others, `other` at a time."""

    own: int
    other: int
    warps: int
    stages: int
    specialised: bool = False
    """Whether Triton specialises warps, some for copies and some for products; `warps` counts one group."""


@dataclass(frozen=True)
class Tiles:
    """One tile per kernel: attention, gradient of queries, gradient of keys and values."""

    forward: Tile
    queries: Tile
    keys: Tile


# (padded head size, bytes of an element, whether the sequence is short). Other head sizes round up.
TABLE: dict[tuple[int, int, bool], Tiles] = {
    (64, 2, False): Tiles(Tile(128, 64, 8, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
    (64, 2, True): Tiles(Tile(64, 64, 4, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
    (128, 2, False): Tiles(Tile(128, 32, 8, 1), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
    (256, 2, False): Tiles(Tile(32, 16, 8, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    (64, 4, False): Tiles(Tile(32, 16, 8, 2), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    (128, 4, False): Tiles(Tile(16, 16, 8, 2), Tile(16, 16, 8, 1), Tile(32, 16, 8, 1)),
    (256, 4, False): Tiles(Tile(16, 16, 8, 2), Tile(16, 16, 8, 2), Tile(16, 16, 8, 2)),
}
WIDE: dict[tuple[int, int, bool], Tiles] = {
    (128, 2, False): Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
    (128, 2, True): Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
}
WIDE_MAJOR = (9, 10)
"""Major compute capabilities that `WIDE` is for."""
# (major compute capability, padded head size, bytes of an element), of the kernel that reads by tensor descriptors.
# Triton 3.7 spills what it specialises for sm_100 at head size 128, and cannot specialise for sm_120.
TMA: dict[tuple[int, int, int], Tile] = {
    (9, 64, 2): Tile(128, 128, 4, 3, specialised=True),
    (9, 128, 2): Tile(128, 128, 4, 2, specialised=True),
    (10, 64, 2): Tile(64, 64, 4, 3, specialised=True),
    (10, 128, 2): Tile(128, 64, 8, 3),
    (12, 64, 2): Tile(128, 64, 8, 3),
    (12, 128, 2): Tile(128, 32, 8, 2),
    **{(major, 256, 4): Tile(16, 16, 8, 1) for major in (9, 10, 12)},
}


# By padded head size, in 16 bits. Some take more than 99 KiB of shared memory: GPUs that have less leave them out.
CANDIDATES: dict[int, tuple[Tile, ...]] = {
    64: (
        Tile(64, 64, 4, 3), Tile(64, 128, 4, 3), Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3),
        Tile(128, 128, 8, 2), Tile(128, 128, 8, 3),
    ),
    128: (
        Tile(64, 32, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 32, 8, 1), Tile(128, 32, 8, 3),
        Tile(128, 64, 8, 2), Tile(128, 64, 8, 3),
    ),
}  # fmt: skip
TMA_CANDIDATES: dict[int, tuple[Tile, ...]] = {
    64: (Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(128, 128, 8, 3)),
    128: (Tile(64, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), Tile(128, 128, 8, 2)),
}
SPECIALISED_CANDIDATES: dict[int, tuple[Tile, ...]] = {
    64: (Tile(128, 128, 4, 3, True), Tile(256, 64, 4, 3, True)),
    128: (Tile(128, 64, 4, 3, True), Tile(128, 64, 4, 4, True), Tile(128, 128, 4, 2, True)),
}
"""Warps that copy and warps that multiply; Triton limits them to these numbers on sm_90."""


def tiles(head_size: int, dtype: torch.dtype, rows: Any, major: int | None = None, minor: int = 0) -> Tiles:
    """The tiles for a head size, the dtype of q, k and v, and the rows L of the packed sequence.

    major, minor: compute capability of the GPU; major None where there is none, as in the interpreter.
    """
    padded = _padded(head_size)
    key = (padded, dtype.itemsize, length_of(rows) == "short")
    wide = WIDE.get(key) if major in WIDE_MAJOR else None
    found = wide or TABLE.get(key) or TABLE[padded, dtype.itemsize, False]
    tile = _measured("forward", head_size, dtype, rows, (major, minor))
    return found if tile is None else replace(found, forward=tile)


def tma_tile(head_size: int, dtype: torch.dtype, rows: Any, major: int | None = None, minor: int = 0) -> Tile:
    """The tile of the kernel that uses tensor descriptors; without an entry, that of the plain kernel."""
    found = _measured("tma", head_size, dtype, rows, (major, minor))
    found = found or TMA.get((major or 0, _padded(head_size), dtype.itemsize))
    return found or tiles(head_size, dtype, rows, major, minor).forward


def _measured(
    kernel: str, head_size: int, dtype: torch.dtype, rows: Any, capability: tuple[int | None, int]
) -> Tile | None:
    major, minor = capability
    place = None if major is None else (major, minor)
    tile: Mapping[str, Any] | None = measured(f"boundary_attention.{kernel}", place, dtype, head_size, rows)
    return None if tile is None else Tile(**tile)


def candidates(kernel: str, head_size: int, dtype: torch.dtype, major: int) -> tuple[Tile, ...]:
    """Tiles worth timing for kernel `forward` or `tma` on GPUs of a major compute capability, the table's first.

    Only in 16 bits and up to head size 128; otherwise just the table's.
    """
    padded = _padded(head_size)
    known = [tma_tile(head_size, dtype, rows, major) for rows in (1, SHORT)]
    if kernel == "forward":
        known = [tiles(head_size, dtype, rows, major).forward for rows in (1, SHORT)]
    if dtype.itemsize == 2 and padded in CANDIDATES:
        known += (CANDIDATES if kernel == "forward" else TMA_CANDIDATES)[padded]
        if kernel == "tma" and major == 9:
            known += SPECIALISED_CANDIDATES[padded]
    return tuple(dict.fromkeys(known))


def _padded(head_size: int) -> int:
    """The head size rounded up to one in the tables."""
    return next(size for size in (64, 128, HEAD_LIMIT) if head_size <= size)


def constants(head_size: int, tile: Tile, cuts: tuple[int, int], *, widen: bool = False) -> dict[str, int | bool]:
    """Compile-time arguments, which all three kernels share.

    cuts: entries of `offsets` and of `groups`; a kernel compiled for some number serves every smaller one as well.
    widen: see `dot` in `triton.py`; only the interpreter needs it.
    """
    segment_slots, group_slots = (max(SLOTS, 1 << max(int(entries) - 1, 0).bit_length()) for entries in cuts)
    return {
        "C": head_size,
        "WIDTH": max(16, 1 << max(head_size - 1, 0).bit_length()),
        "OWN": tile.own,
        "OTHER": tile.other,
        "SEGMENT_SLOTS": segment_slots,
        "GROUP_SLOTS": group_slots,
        "WIDEN": widen,
    }
