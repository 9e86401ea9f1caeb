"""Resource usage of a compiled kernel, read from its cubin, and its limits; needs no GPU.

Uses `cuobjdump`, which comes with Triton.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Most bytes of shared memory per block by architecture (CUDA programming guide, table of compute capabilities)."""
REGISTERS = 255
"""Most registers that a thread can address."""
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What one launch uses of a multiprocessor."""

    registers: int
    """Registers per thread."""
    spilled: int
    """Bytes of stack and local memory per thread: values that did not fit into registers."""
    static_shared: int
    """Bytes of shared memory per block that the cubin itself reserves, including CUDA's own."""
    dynamic_shared: int
    """Bytes of shared memory per block that the launch must request."""


def resources(cubin: bytes, dynamic_shared: int) -> Resources:
    """Resources of the only kernel in a cubin; dynamic_shared: as reported by its compiler.

    Raises ValueError unless there is exactly one kernel, FileNotFoundError without `cuobjdump`.
    """
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = USAGE.findall(listing)
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels where one was expected in: {listing}")
    registers, stack, static_shared, local = map(int, found[0])
    return Resources(registers, stack + local, static_shared, dynamic_shared)


def check(name: str, arch: int, used: Resources) -> None:
    """Raise ValueError naming kernel, architecture, value and limit if a limit is exceeded."""
    limits = (
        ("bytes of registers spilled to memory", used.spilled, 0),
        ("bytes of shared memory", used.static_shared + used.dynamic_shared, SHARED[arch]),
        ("registers", used.registers, REGISTERS),
    )
    for what, value, limit in limits:
        if value > limit:
            raise ValueError(
                f"{name} on sm_{arch}: {value} {what}, the limit is {limit}; its config needs another tile"
            )
