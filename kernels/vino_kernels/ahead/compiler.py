"""Compile a `Variant` to a cubin, with Triton and without a GPU.

Triton's output is checked against the declaration: names, order and sizes of parameters, block, cluster and scratch
memory. It writes no files; `build.py` does.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas_version
from triton.compiler import ASTSource

from vino_kernels.ahead.manifest import Made
from vino_kernels.ahead.resources import resources
from vino_kernels.ahead.variant import ALIGNMENT, Variant

PARAMETER = re.compile(r"^\s*\.param\s+\.(?:align\s+\d+\s+)?\.?(\w+)[^,\n]*_param_\d+", re.MULTILINE)
PTX_TYPES = {"i32": "u32", "i64": "u64", "fp32": "f32"}
SCRATCH = ("u64", "u64")
"""Types of Triton's last two parameters: pointers to global scratch memory and to its profiler's."""


def versions(arch: int) -> tuple[str, str]:
    """Versions of Triton and of the assembler that it uses for an architecture."""
    return triton.__version__, re.sub(r"\s+", " ", get_ptxas_version(arch)).strip()


@contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """Inside the block, compile without source file names in cubins, and cache in `folder`, not with other kernels."""
    with triton.knobs.compilation.scope(), triton.knobs.cache.scope():
        triton.knobs.compilation.disable_line_info = True
        triton.knobs.cache.dir = str(folder)
        yield


def compile_variant(variant: Variant) -> tuple[bytes, Made]:
    """Compile a variant; returns the cubin and the facts that a launch needs.

    Raises ValueError if the kernel differs from its declaration, RuntimeError in a process whose kernels were created
    for Triton's interpreter, and Triton's own errors.
    """
    made = triton_kernel(variant)
    facts = made.metadata
    _check_launch(variant, facts)
    _check_parameters(variant, made.asm["ptx"])
    cubin: bytes = made.asm["cubin"]
    return cubin, Made(
        symbol=facts.name,
        warps=facts.num_warps,
        stages=facts.num_stages,
        num_ctas=facts.num_ctas,
        global_scratch=facts.global_scratch_size,
        profile_scratch=facts.profile_scratch_size,
        used=resources(cubin, facts.shared),
    )


def triton_kernel(variant: Variant, **more: Any) -> Any:
    """Triton's compiled kernel of a variant, with its intermediate results (`.asm`, `.metadata`).

    more: further options of Triton's compiler.
    """
    kernel = getattr(importlib.import_module(f"vino_kernels.{variant.operation}.triton"), variant.kernel)
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            f"{variant.kernel} was made for Triton's interpreter in this process: unset TRITON_INTERPRET"
        )
    types = {argument.name: argument.type for argument in variant.arguments}
    given = [name for name in kernel.arg_names if name not in variant.constants]
    if given != list(types) or not set(variant.constants) <= set(kernel.arg_names):
        raise ValueError(
            f"{variant.name} declares {list(types)} and {list(variant.constants)}; it has {kernel.arg_names}"
        )
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    hints = {
        (kernel.arg_names.index(argument.name),): [["tt.divisibility", ALIGNMENT]]
        for argument in variant.arguments
        if argument.aligned
    }
    source = ASTSource(kernel, signature, constexprs=dict(variant.constants), attrs=hints)
    options = {"num_warps": variant.warps, **({} if variant.stages is None else {"num_stages": variant.stages}), **more}
    return triton.compile(source, target=GPUTarget("cuda", variant.arch, 32), options=options)


def _check_launch(variant: Variant, facts: Any) -> None:
    """Raise ValueError for scratch memory, clusters or cooperative grids, which the loader does not support."""
    wanted = {
        "num_ctas": 1,
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
    }
    for name, value in wanted.items():
        if getattr(facts, name) != value:
            raise ValueError(f"{variant.name} on sm_{variant.arch}: {name} is {getattr(facts, name)}, must be {value}")


def _check_parameters(variant: Variant, ptx: str) -> None:
    declared = ["u64" if argument.is_tensor else PTX_TYPES[argument.type] for argument in variant.arguments]
    found = PARAMETER.findall(ptx)
    if found != [*declared, *SCRATCH]:
        raise ValueError(f"{variant.name} on sm_{variant.arch}: parameters {found}, declared {declared} and scratch")
