"""How `qk_norm_rope` is launched for each shape class: a table, looked up; nothing is timed when a request runs.

The entries are reasoned, not measured yet: about a thousand elements of q and as many of k in flight per program,
16 bytes per load of a thread in bfloat16.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vino_kernels.grid import Rule
from vino_kernels.qk_norm_rope.ref import EPS

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


def choose(heads: int, channels: int) -> Config:
    """The launch of tensors [L, heads, channels]; it does not depend on L, since a program takes one token."""
    found = next((config for widest, config in TABLE.items() if channels <= widest), WIDEST)
    return Config(min(found.heads, 1 << max(heads - 1, 0).bit_length()), found.warps)


def constants(heads: int, channels: int, axes: Sequence[int], theta: float) -> dict[str, int | float]:
    """Compile-time arguments of the kernel for tensors [L, heads, channels]."""
    pairs = channels // 2
    steps = [2 * math.log2(theta) / size if size else 0.0 for size in axes]
    return {
        "HEADS": heads,
        "C": channels,
        **dict(zip("THW", (size // 2 for size in axes), strict=True)),
        **dict(zip(("T_STEP", "H_STEP", "W_STEP"), steps, strict=True)),
        "EPS": EPS,
        "BLOCK_HEADS": choose(heads, channels).heads,
        "BLOCK_PAIRS": 1 << max(pairs - 1, 0).bit_length(),
    }
