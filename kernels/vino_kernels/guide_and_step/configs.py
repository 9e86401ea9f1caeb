"""How `guide_and_step` is launched: one entry, since every shape is a row of elements.

Reasoned, not measured yet: 8 elements of each input for each thread. Nothing is timed when a request runs.
"""

from vino_kernels.grid import Rule

BLOCK = 1024
WARPS = 4
GRID: tuple[Rule, ...] = (("ceil_div", "count", "BLOCK"),)
"""Programs, with `count` the elements of the latents."""


def constants(branches: int) -> dict[str, int]:
    """Compile-time arguments of the kernel."""
    return {"BRANCHES": branches, "BLOCK": BLOCK}
