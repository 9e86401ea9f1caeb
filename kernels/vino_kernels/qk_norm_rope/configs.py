"""Launch configurations of `qk_norm_rope` by class of shapes. They are looked up: nothing is timed at run time.

Measured tiles (`vino_kernels/tiles.json`) come first. The entries of `TABLE` are reasoned: about a thousand elements of
q and as many of k in flight for each program, 16 bytes for each load of a thread in bfloat16.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vino_kernels.grid import Rule
from vino_kernels.qk_norm_rope.ref import EPS
from vino_kernels.tiles import measured

BINARY_DIGITS = 44
"""After the point of the fixed-point numbers in which the kernel takes powers of theta."""
LARGEST_THETA = 1e9
GRID: tuple[Rule, ...] = ("rows",)
"""Programs, with `rows` the L of q [L, H, C]."""


@dataclass(frozen=True)
class Config:
    """Heads of a token that a program takes at a time, and its warps."""

    heads: int
    warps: int


# Channels of a head, rounded up to a power of two, at most the key.
TABLE = {
    32: Config(heads=16, warps=2),
    64: Config(heads=16, warps=4),
    128: Config(heads=8, warps=4),
    256: Config(heads=4, warps=4),
}
WIDEST = Config(heads=1, warps=4)


def choose(
    heads: int,
    channels: int,
    rows: Any = None,
    dtype: torch.dtype = torch.bfloat16,
    capability: tuple[int, int] | None = None,
) -> Config:
    """The launch of tensors [rows, heads, channels]; rows None stands for a long sequence.

    capability: of the GPU; None where only the table is asked, which is the same for all.
    """
    tile = measured("qk_norm_rope", capability, dtype, channels, rows)
    table = next((config for widest, config in TABLE.items() if channels <= widest), WIDEST)
    # Half the heads where an element has twice the bytes.
    reasoned = Config(max(1, 2 * table.heads // dtype.itemsize), table.warps)
    found = reasoned if tile is None else Config(**tile)
    return Config(min(found.heads, 1 << max(heads - 1, 0).bit_length()), found.warps)


def candidates(channels: int) -> tuple[Config, ...]:
    """What is worth timing: half to four times the elements of the table's entry, by two, four or eight warps."""
    middle = choose(1 << 30, channels).heads
    heads = sorted({max(1, middle // 2), middle, 2 * middle, 4 * middle})
    return tuple(Config(some, warps) for some in heads for warps in (2, 4, 8))


def constants(
    heads: int, channels: int, axes: Sequence[int], theta: float, config: Config | None = None
) -> dict[str, int | float]:
    """Compile-time arguments of the kernel for tensors [L, heads, channels]; config None: the table's.

    Raises ValueError for a theta below 1, or so large that its powers leave the kernel's fixed-point numbers.
    """
    if not 1 <= theta <= LARGEST_THETA:
        raise ValueError(f"theta {theta:g}: legal is 1 to {LARGEST_THETA:g}")
    pairs = channels // 2
    steps = [round(2 * math.log2(theta) / size * 2**BINARY_DIGITS) if size else 0 for size in axes]
    return {
        "HEADS": heads,
        "C": channels,
        **dict(zip("THW", (size // 2 for size in axes), strict=True)),
        **dict(zip(("T_STEP", "H_STEP", "W_STEP"), steps, strict=True)),
        "EPS": EPS,
        "BLOCK_HEADS": (config or choose(heads, channels)).heads,
        "BLOCK_PAIRS": 1 << max(pairs - 1, 0).bit_length(),
    }
