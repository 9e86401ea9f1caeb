"""Compile kernels for one GPU without a GPU and write what each takes, one JSON object per line.

`python -m tests.kernels.compile_all small 90`: every small kernel at the released model's sizes, for compute capability
9.0; `... attention 90 64 128`: attention and its gradient for these head sizes, whatever their table holds. A process
of its own: Triton's interpreter, which the other tests of this directory use, puts something else in the place of a
kernel.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator

from vino_kernels.ahead.compiler import triton_kernel
from vino_kernels.ahead.declare import attention_variant, variants
from vino_kernels.ahead.resources import resources
from vino_kernels.ahead.shapes import VINO, Shapes
from vino_kernels.ahead.variant import Variant
from vino_kernels.boundary_attention.configs import SHORT, TABLE, WIDE

ELEMENTS = {2: "bfloat16", 4: "float32"}
TMA = 90
"""The first architecture whose hardware copies tiles."""
COUNTED = {"copies": "cp.async.bulk.tensor", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
"""Instructions of the assembly that are counted, by their name in a row."""


def small(capability: int) -> Iterator[Variant]:
    """All but attention, in bfloat16, and what is different in float32 or with RMSNorm."""
    models = VINO, dataclasses.replace(VINO, dtype="float32")
    for variant in variants(models, capability):
        if variant.operation != "boundary_attention":
            yield variant
        if variant.operation == "norm_modulate":
            constants = {**variant.constants, "RMS": True}
            yield dataclasses.replace(variant, name=f"{variant.name}-rms", constants=constants)


def attention(capability: int, sizes: set[int]) -> Iterator[Variant]:
    """Every entry of the table that this architecture chooses for these head sizes, all three kernels of it."""
    for head_size, width, short in sorted({*TABLE, *WIDE}):
        if head_size in sizes:
            shapes = Shapes(24, head_size, (head_size, 0, 0), dtype=ELEMENTS[width])
            for kernel in ("forward", "queries", "keys", *(("tma",) if capability >= TMA else ())):
                yield attention_variant(shapes, capability, kernel, SHORT - short, "short" if short else "long")


def main(group: str, capability: int, *sizes: int) -> None:
    """Compile a group; a kernel that does not compile ends the process with Triton's error."""
    for variant in small(capability) if group == "small" else attention(capability, set(sizes)):
        kernel = triton_kernel(variant)
        wide = len(re.findall(r"arith\.extsi .*i32 to i64", kernel.asm["ttir"]))
        used = resources(kernel.asm["cubin"], kernel.metadata.shared)
        counts = {name: kernel.asm["ptx"].count(word) for name, word in COUNTED.items()}
        row = {"name": variant.name, "widened": wide, "warps": kernel.metadata.num_warps, **counts, **vars(used)}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
