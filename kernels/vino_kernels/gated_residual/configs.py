"""How `gated_residual` is launched for each shape class: a table, looked up; nothing is timed when a request runs.

The entries are reasoned, not measured yet: 16 elements for each thread, four loads of 8 bytes to two of 16.
"""

from dataclasses import dataclass

from vino_kernels.grid import Rule

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


def choose(width: int) -> Config:
    """The launch for rows of `width` elements."""
    return next((config for widest, config in TABLE.items() if width <= widest), WIDEST)


def constants(width: int) -> dict[str, int]:
    """Compile-time arguments of the kernel for rows of `width` elements."""
    config = choose(width)
    return {"WIDTH": width, "BLOCK_ROWS": config.rows, "BLOCK_COLUMNS": config.columns}
