"""Exported program -> one AOTInductor package whose weights are arguments: machine code for this processor or GPU.

On a CPU our operators are decomposed into plain operations, which the compiler fuses; attention and matrix products
stay library calls, which are faster than what it generates (bench/LOG.md). On a GPU the hot operations are our Triton
kernels, which the compiler embeds into the package; that side has not run on a GPU yet.
"""

import fcntl
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_export.notes import without_library_notes
from vino_export.program import export_with_arguments
from vino_rt.backends.aotinductor import DESCRIPTION, describe
from vino_rt.backends.base import CPU, Kind
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.kernels import kernel_nodes
from vino_rt.memory import detail, is_shortage
from vino_rt.models.vino.ops import operations, plain_norm_modulate

MESSAGE_END = 1500
"""Characters from the end of a compiler's output that an error shows."""
WORKSHOP = "vino-rt-compile-"
"""Prefix of the compiler's temporary directories."""
YOUNG = 60.0
"""A temporary directory younger than this many seconds may belong to a process that has not locked it yet."""


def write_package(kind: Kind, path: Path, device: torch.device = CPU, *, max_autotune: bool = False) -> None:
    """Compile a kind into a package at `path`.

    The program takes the inputs in the spec's order, then the weights in the order of the module's state dict.
    max_autotune: let the compiler time several kernels per matrix product or convolution and keep the fastest. This
    takes minutes on a GPU; on a CPU there are no alternatives while weights are arguments.
    Raises EngineError if there is no C++ compiler, if it fails, or if the disk is full, and OutOfMemory.
    """
    require_compiler("backend 'aotinductor'")
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    workshop = _workshop().name
    try:
        with without_library_notes(), temporary_cache_dir(workshop), torch.no_grad():
            program = program_for(kind, device)
            configs = options(kind, device, max_autotune=max_autotune)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    except (OSError, RuntimeError) as error:
        if is_shortage(error):
            raise OutOfMemory(f"{kind.name}: memory ran out while AOTInductor compiled it{detail(error)}") from error
        if isinstance(error, OSError):
            raise EngineError(f"{kind.name}: cannot compile in {workshop}: {error}; make room there") from error
        raise EngineError(f"{kind.name}: AOTInductor cannot compile it: {str(error)[-MESSAGE_END:]}") from error


def program_for(kind: Kind, device: torch.device) -> torch.export.ExportedProgram:
    """The exported program to compile for a device, which need not be present."""
    if device.type == "cuda":
        with operations(kernel_nodes()):
            return export_with_arguments(kind, device)
    program: torch.export.ExportedProgram = export_with_arguments(kind).run_decompositions(_decompositions())
    _fold_gelu(program.graph_module)
    return program


def options(kind: Kind, device: torch.device, *, max_autotune: bool) -> dict[str, Any]:
    """The compiler's options."""
    return {
        "aot_inductor.metadata": {DESCRIPTION: json.dumps(describe(kind, device))},
        # Read the number of threads when the package runs instead of compiling it in.
        "cpp.dynamic_threads": True,
        "compile_threads": 1,
        "max_autotune": max_autotune,
    }


def require_compiler(what: str) -> str:
    """Command of the C++ compiler; EngineError with what to install if there is none. what: the thing that needs it."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise EngineError(
            f"building for {what} needs a C++ compiler; install g++ (on Debian and Ubuntu: "
            "apt-get install g++) or name yours in the environment variable CXX. What is built runs without one"
        ) from error


@functools.cache
def _workshop() -> tempfile.TemporaryDirectory[str]:
    """Cache directory of the compiler, shared by the kinds that this process builds and removed when it ends.

    A killed process leaves its directory behind; the next process that builds removes it.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{WORKSHOP}*"):
        _sweep(left)
    made = tempfile.TemporaryDirectory(prefix=WORKSHOP)
    # The lock is held for as long as the process lives.
    fcntl.flock(os.open(made.name, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)
    return made


def _sweep(left: Path) -> None:
    """Remove a directory that no process has locked, unless it is so young that its owner may still be about to."""
    try:
        handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        # It is gone, or belongs to another user.
        return
    try:
        if time.time() - os.fstat(handle).st_mtime > YOUNG:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        **torch.export.default_decompositions(),
        torch.ops.vino.norm_modulate.default: plain_norm_modulate,
        torch.ops.vino.qk_norm_rope.default: plain_qk_norm_rope,
        torch.ops.aten.linear.default: lambda x, weight, bias=None: torch.ops.vino.linear(x, weight, bias, False),
    }


def _fold_gelu(module: torch.fx.GraphModule) -> None:
    """Fuse a tanh GELU into the linear layer whose only use it is."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default):
        product = node.args[0]
        tanh = node.kwargs.get("approximate") == "tanh"
        if tanh and product.target is torch.ops.vino.linear.default and list(product.users) == [node]:
            product.args = (*product.args[:3], True)
            node.replace_all_uses_with(product)
            module.graph.erase_node(node)
    module.recompile()


def plain_qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`vino::qk_norm_rope` as in the kernel's reference: without complex numbers, which compilers do not support."""
    # Not at the top: the kernel's package imports Triton where it is installed.
    from vino_kernels.qk_norm_rope.ref import norm_rope

    return norm_rope(x, weight, cos[:, None], sin[:, None])
