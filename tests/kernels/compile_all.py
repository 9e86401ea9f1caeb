"""Compile every small kernel for one GPU without a GPU and write what each takes, one JSON object per line.

`python -m tests.kernels.compile_all 90` for compute capability 9.0. A process of its own: Triton's interpreter, which
the other tests of this directory use, puts something else in the place of a kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vino_kernels.gated_residual import triton as gated_residual
from vino_kernels.gated_residual.configs import choose as choose_gated_residual
from vino_kernels.guide_and_step import triton as guide_and_step
from vino_kernels.guide_and_step.configs import WARPS
from vino_kernels.norm_modulate import triton as norm_modulate
from vino_kernels.norm_modulate.configs import choose as choose_norm_modulate
from vino_kernels.qk_norm_rope import triton as qk_norm_rope
from vino_kernels.qk_norm_rope.configs import choose as choose_qk_norm_rope

WIDTH, HEADS, CHANNELS, AXES, THETA = 3072, 24, 128, (16, 56, 56), 256.0
FP8_CAPABILITY = 89
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Case:
    """A kernel with the types of its arguments, in their order, and its compile-time arguments."""

    name: str
    kernel: Any
    types: tuple[str, ...]
    constants: dict[str, Any]
    warps: int


def cases(capability: int) -> Iterator[Case]:
    """The kernels at the sizes of the released model, in the dtypes they run in."""
    rotation = qk_norm_rope.constants(HEADS, CHANNELS, AXES, THETA)
    warps = choose_qk_norm_rope(HEADS, CHANNELS).warps
    for dtype in ("bf16", "fp32"):
        pointer = f"*{dtype}"
        types: tuple[str, ...] = (*[pointer] * 4, "*i32", pointer, pointer)
        yield Case(f"qk_norm_rope_{dtype}", qk_norm_rope.qk_norm_rope_kernel, types, rotation, warps)
    kernel, warps = norm_modulate.norm_modulate_kernel, choose_norm_modulate(WIDTH).warps
    types = ("*bf16", "*bf16", "*bf16", "*bf16", "*bf16", "i32")
    yield Case("norm_modulate", kernel, types, norm_modulate.constants(WIDTH, rms=False, quantise=False), warps)
    if capability >= FP8_CAPABILITY:
        types = ("*bf16", "*bf16", "*bf16", "*fp32", "*fp8e4nv", "i32")
        values = norm_modulate.constants(WIDTH, rms=True, quantise=True)
        yield Case("norm_modulate_fp8", kernel, types, values, warps)
    types = ("*bf16", "*bf16", "*bf16", "*bf16", "i32")
    warps = choose_gated_residual(WIDTH).warps
    yield Case("gated_residual", gated_residual.gated_residual_kernel, types, gated_residual.constants(WIDTH), warps)
    types = ("*fp32", "*bf16", "*fp32", "*fp32", "*fp32", "i32")
    yield Case("guide_and_step", guide_and_step.guide_and_step_kernel, types, guide_and_step.constants(3), WARPS)


def compiled(case: Case, capability: int) -> Any:
    """The kernel of a case for a GPU, pointers aligned to 16 bytes as PyTorch's memory is."""
    names = case.kernel.arg_names
    signature = dict(zip(names, (*case.types, *["constexpr"] * len(case.constants)), strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(case.types) if kind.startswith("*")}
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps})


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, its stack and local memory, and shared memory of a block, in bytes, from the cubin."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = USAGE.search(text)
    assert found, text
    return dict(zip(("registers", "stack", "shared", "local"), map(int, found.groups()), strict=True))


def main(capability: int) -> None:
    """Compile all cases; a kernel that does not compile ends the process with Triton's error."""
    for case in cases(capability):
        kernel = compiled(case, capability)
        wide = len(re.findall(r"arith\.extsi .*i32 to i64", kernel.asm["ttir"]))
        row = {"name": case.name, "dynamic_shared": kernel.metadata.shared, "widened": wide}
        sys.stdout.write(json.dumps({**row, **usage(kernel.asm["cubin"])}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
