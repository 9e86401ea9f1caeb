"""What a compiled kernel takes of a GPU, read from its cubin, and the limits it must keep; no GPU is needed.

`cuobjdump` comes with Triton, which only the machine that compiles has.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes of shared memory that one block may have, by architecture: the CUDA programming guide's table of compute
capabilities."""
REGISTERS = 255
"""Of one thread; more cannot be addressed."""
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What one launch takes of a multiprocessor."""

    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread's stack and local memory: what did not fit its registers."""
    static_shared: int
    """Bytes of shared memory of a block that the cubin itself asks for, CUDA's own among them where it has some."""
    dynamic_shared: int
    """Bytes of shared memory of a block that a launch must give."""


def resources(cubin: bytes, dynamic_shared: int) -> Resources:
    """Read from a cubin of one kernel; `dynamic_shared` is what its compiler said.

    Raises ValueError where the listing holds another number of kernels, FileNotFoundError without `cuobjdump`.
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
    """Raise ValueError naming the kernel, the architecture, the value and the limit that it does not keep."""
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
