"""Launch configurations of `norm_modulate` by class of shapes. They are looked up: nothing is timed at run time.

Measured tiles (`vino_kernels/tiles.json`) come first. The entries of `TABLE` are reasoned: every thread holds a whole
number of 16 bytes in bfloat16 of a row of 3,072, so that none is idle, and narrow rows are taken several at a time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from vino_kernels.grid import Rule
from vino_kernels.norm_modulate.ref import EPS, FP8_MAX
from vino_kernels.tiles import measured

GRID: tuple[Rule, ...] = (("ceil_div", "rows", "BLOCK_ROWS"),)
"""Programs, with `rows` the L of x [L, D]."""


@dataclass(frozen=True)
class Config:
    """Rows of a program, columns of the chunks that it divides them into, at the most, and its warps."""

    rows: int
    columns: int
    warps: int


# Width of a row, at most the key.
TABLE = {
    256: Config(rows=8, columns=256, warps=4),
    1024: Config(rows=2, columns=1024, warps=4),
    4096: Config(rows=1, columns=1024, warps=4),
}
MOST_WARPS = 16
WIDEST = Config(rows=1, columns=4096, warps=16)


def choose(
    width: int,
    *,
    quantise: bool = False,
    rows: Any = None,
    dtype: torch.dtype = torch.bfloat16,
    capability: tuple[int, int] | None = None,
) -> Config:
    """The launch for rows of `width` elements, with a result in float8 or not; rows None stands for many.

    capability: of the GPU; None where only the table is asked, which is the same for all.
    """
    tile = measured("norm_modulate.fp8" if quantise else "norm_modulate", capability, dtype, width, rows)
    if tile is not None:
        return Config(**tile)
    found = next((config for widest, config in TABLE.items() if width <= widest), WIDEST)
    # Twice the threads where an element has twice the bytes.
    return replace(found, warps=min(MOST_WARPS, found.warps * dtype.itemsize // 2))


def candidates(width: int) -> tuple[Config, ...]:
    """What is worth timing: chunks of a few sizes, one row or two, 4 to 32 elements of a chunk for each thread."""
    padded = 1 << max(width - 1, 0).bit_length()
    sizes = sorted({min(padded, columns) for columns in (512, 1024, 2048, 4096)})
    return tuple(
        Config(rows, columns, warps)
        for rows in (1, 2)
        for columns in sizes
        for warps in (2, 4, 8, 16)
        if 4 <= rows * columns // (32 * warps) <= 32
    )


def constants(width: int, *, rms: bool, quantise: bool, config: Config | None = None) -> dict[str, int | float | bool]:
    """Compile-time arguments of the kernel for rows of `width` elements; config None: the table's."""
    config = config or choose(width, quantise=quantise)
    return {
        "WIDTH": width,
        "RMS": rms,
        "QUANTISE": quantise,
        "EPS": EPS,
        "LIMIT": FP8_MAX,
        "BLOCK_ROWS": config.rows,
        "BLOCK": min(config.columns, 1 << max(width - 1, 0).bit_length()),
    }
