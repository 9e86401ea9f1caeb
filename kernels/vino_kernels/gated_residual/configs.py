"""Launch configurations of `gated_residual` by class of shapes. They are looked up: nothing is timed at run time.

Measured tiles (`vino_kernels/tiles.json`) come first. The entries of `TABLE` are reasoned: 16 elements for each thread,
four loads of 8 bytes to two of 16.
"""

from dataclasses import dataclass
from typing import Any

import torch

from vino_kernels.grid import Rule
from vino_kernels.tiles import measured

GRID: tuple[Rule, ...] = (("ceil_div", "rows", "BLOCK_ROWS"), ("ceil_div", "WIDTH", "BLOCK_COLUMNS"))
"""Programs along rows and columns, with `rows` the L of x [L, D]."""


@dataclass(frozen=True)
class Config:
    """Rows and columns of a program's tile, and its warps."""

    rows: int
    columns: int
    warps: int


# Width of a row, at most the key.
TABLE = {
    64: Config(rows=32, columns=64, warps=4),
    256: Config(rows=8, columns=256, warps=4),
}
WIDEST = Config(rows=4, columns=512, warps=4)


def choose(
    width: int, rows: Any = None, dtype: torch.dtype = torch.bfloat16, capability: tuple[int, int] | None = None
) -> Config:
    """The launch for rows of `width` elements; rows None stands for many.

    capability: of the GPU; None where only the table is asked, which is the same for all.
    """
    tile = measured("gated_residual", capability, dtype, width, rows)
    if tile is not None:
        return Config(**tile)
    return next((config for widest, config in TABLE.items() if width <= widest), WIDEST)


def candidates(width: int) -> tuple[Config, ...]:
    """What is worth timing: 8, 16 or 32 elements for each thread, in tiles of one to eight rows."""
    padded = 1 << max(width - 1, 0).bit_length()
    sizes = sorted({min(padded, columns) for columns in (512, 1024)})
    return tuple(
        Config(rows, columns, warps)
        for rows in (1, 2, 4, 8)
        for columns in sizes
        for warps in (2, 4, 8)
        if 8 <= rows * columns // (32 * warps) <= 32
    )


def constants(width: int, config: Config | None = None) -> dict[str, int]:
    """Compile-time arguments of the kernel for rows of `width` elements; config None: the table's."""
    config = config or choose(width)
    return {"WIDTH": width, "BLOCK_ROWS": config.rows, "BLOCK_COLUMNS": config.columns}
