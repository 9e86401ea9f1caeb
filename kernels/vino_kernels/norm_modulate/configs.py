"""How `norm_modulate` is launched for each shape class: a table, looked up; nothing is timed when a request runs.

The entries are reasoned, not measured yet: 16 to 32 elements of a row for each thread, narrow rows several at a time.
"""

from dataclasses import dataclass

from vino_kernels.grid import Rule
from vino_kernels.norm_modulate.ref import EPS, FP8_MAX

GRID: tuple[Rule, ...] = (("ceil_div", "rows", "BLOCK_ROWS"),)
"""Programs, with `rows` the L of x [L, D]."""


@dataclass(frozen=True)
class Config:
    """Rows of a program and its warps."""

    rows: int
    warps: int


# Width of a row, at most the key.
TABLE = {
    256: Config(rows=8, warps=4),
    1024: Config(rows=2, warps=4),
    2048: Config(rows=1, warps=4),
    4096: Config(rows=1, warps=8),
}
# Where the result is float8. With 8 warps the compiler spills an address to fit a sixth block on sm_89.
QUANTISED = {**TABLE, 4096: Config(rows=1, warps=16)}
WIDEST = Config(rows=1, warps=16)


def choose(width: int, *, quantise: bool = False) -> Config:
    """The launch for rows of `width` elements, with a result in float8 or not."""
    table = QUANTISED if quantise else TABLE
    return next((config for widest, config in table.items() if width <= widest), WIDEST)


def constants(width: int, *, rms: bool, quantise: bool) -> dict[str, int | float | bool]:
    """Compile-time arguments of the kernel for rows of `width` elements."""
    return {
        "WIDTH": width,
        "RMS": rms,
        "QUANTISE": quantise,
        "EPS": EPS,
        "LIMIT": FP8_MAX,
        "BLOCK_ROWS": choose(width, quantise=quantise).rows,
        "BLOCK": 1 << max(width - 1, 0).bit_length(),
    }
