"""How `norm_modulate` is launched for each shape class: a table, looked up; nothing is timed when a request runs.

The entries are reasoned, not measured yet: 16 to 32 elements of a row for each thread, narrow rows several at a time.
"""

from dataclasses import dataclass


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
WIDEST = Config(rows=1, warps=16)


def choose(width: int) -> Config:
    """The launch for rows of `width` elements."""
    return next((config for widest, config in TABLE.items() if width <= widest), WIDEST)
