"""Launch configuration of `guide_and_step`: a single one, since tensors are treated as flat.

Derived, not measured yet: each thread takes 8 elements of each input.
"""

from vino_kernels.grid import Rule

BLOCK = 1024
WARPS = 4
GRID: tuple[Rule, ...] = (("ceil_div", "count", "BLOCK"),)
"""Programs, with `count` the elements of the latents."""


def constants(branches: int) -> dict[str, int]:
    """Compile-time arguments of the kernel."""
    return {"BRANCHES": branches, "BLOCK": BLOCK}
