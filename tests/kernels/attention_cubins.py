"""Compile the attention kernels for one architecture without a GPU: `python -m tests.kernels.attention_cubins 90`.

Prints one JSON object per kernel of the config table: its registers, bytes on the stack (what did not fit the
registers) and shared memory. A process of its own, because the kernels of a test process belong to the interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vino_kernels.boundary_attention.configs import SHORT, TABLE, WIDE, Tile, tiles
from vino_kernels.boundary_attention.launch import Launch
from vino_kernels.boundary_attention.triton import forward_kernel, keys_kernel, queries_kernel

ELEMENTS = {2: (torch.bfloat16, "*bf16"), 4: (torch.float32, "*fp32")}
USED = re.compile(r"REG:(\d+) STACK:(\d+)")
WIDE_ROWS = {"q", "k", "v", "grad_out", "out", "grad_q", "grad_k", "grad_v"}
STRIDES = {f"{name}_{axis}" for name in "qkv" for axis in ("row", "head")}


def entries(capability: int, sizes: set[int]) -> Iterator[tuple[Any, Tile, int, int]]:
    """Kernel, tile, head size and bytes of an element: all that is chosen on this architecture for these head sizes."""
    for head_size, width, short in sorted({*TABLE, *WIDE}):
        if head_size in sizes:
            table = tiles(head_size, ELEMENTS[width][0], SHORT - short, capability // 10)
            kernels = (forward_kernel, table.forward), (queries_kernel, table.queries), (keys_kernel, table.keys)
            yield from ((kernel, tile, head_size, width) for kernel, tile in kernels)


def compiled(kernel: Any, tile: Tile, head_size: int, width: int, capability: int) -> dict[str, Any]:
    """Resources of the cubin for four segments of 24 heads, side by side in one tensor of q, k and v."""
    dtype, pointer = ELEMENTS[width]
    x = torch.empty(0, 24, head_size, dtype=dtype)
    table = torch.empty(5, dtype=torch.int32)
    constants = Launch.of(x, x, x, table, None).constants(tile)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        tables = "*i32" if name in ("offsets", "groups") else "*fp32"
        scalar = name in STRIDES or name in ("heads", "n_segments", "n_groups")
        signature[name] = "constexpr" if name in constants else pointer if name in WIDE_ROWS else tables
        if scalar:
            signature[name] = "i32"
        if name in STRIDES or signature[name].startswith("*"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = USED.search(listing)
    assert used, listing
    case = f"{kernel.__name__} head {head_size} {dtype} {tile}"
    return {"case": case, "registers": int(used[1]), "stack": int(used[2]), "shared": made.metadata.shared}


def main() -> None:
    """Compile for the capability given first and the head sizes that follow."""
    capability, *sizes = (int(argument) for argument in sys.argv[1:])
    for entry in entries(capability, set(sizes)):
        print(json.dumps(compiled(*entry, capability)), flush=True)


if __name__ == "__main__":
    main()
