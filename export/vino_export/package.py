"""Exported program -> one AOTInductor package whose weights are arguments: machine code for this processor or GPU.

On a CPU the operators of our namespace become plain operations, which the compiler fuses; attention and products stay
calls, for which it has nothing better (bench/LOG.md). On a GPU the hot operations are our Triton kernels, which the
compiler puts into the package; that side has not run on a GPU yet.
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
"""Characters of a compiler's output that are worth showing; the error comes last."""
WORKSHOP = "vino-rt-compile-"
YOUNG = 60.0
"""Seconds between making a workshop and taking hold of it, and many more."""


def write_package(kind: Kind, path: Path, device: torch.device = CPU, *, max_autotune: bool = False) -> None:
    """Compile a kind to `path`: inputs in the spec's order, then its weights in the order of the module's state.

    max_autotune: let the compiler time several kernels for a product or a convolution and keep the fastest. That takes
    minutes on a GPU; on a CPU it has none to choose among while weights are arguments.
    Raises EngineError when there is no C++ compiler, when it fails, or when there is no room to compile in, and
    OutOfMemory.
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
    """What is compiled for a device, which need not be there."""
    if device.type == "cuda":
        with operations(kernel_nodes()):
            return export_with_arguments(kind, device)
    program: torch.export.ExportedProgram = export_with_arguments(kind).run_decompositions(_decompositions())
    _fold_gelu(program.graph_module)
    return program


def options(kind: Kind, device: torch.device, *, max_autotune: bool) -> dict[str, Any]:
    """What the compiler is told."""
    return {
        "aot_inductor.metadata": {DESCRIPTION: json.dumps(describe(kind, device))},
        # The number of threads is the caller's when the package runs, not what it was here.
        "cpp.dynamic_threads": True,
        "compile_threads": 1,
        "max_autotune": max_autotune,
    }


def require_compiler(what: str) -> str:
    """The C++ compiler's command; EngineError with what to install where there is none, naming what needs it."""
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
    """Where the compiler keeps what one kind leaves for the next; gone when the process ends, never the user's own.

    A process that is killed leaves its own behind: the next one to build removes it.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{WORKSHOP}*"):
        _sweep(left)
    made = tempfile.TemporaryDirectory(prefix=WORKSHOP)
    # Held for as long as the process lives.
    fcntl.flock(os.open(made.name, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)
    return made


def _sweep(left: Path) -> None:
    """Remove a workshop that nobody holds, unless it is so young that its owner may not have come to that."""
    try:
        handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        # Gone meanwhile, or of another user, who removes it.
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
    """Let a product compute the tanh GELU that is its only use."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default):
        product = node.args[0]
        tanh = node.kwargs.get("approximate") == "tanh"
        if tanh and product.target is torch.ops.vino.linear.default and list(product.users) == [node]:
            product.args = (*product.args[:3], True)
            node.replace_all_uses_with(product)
            module.graph.erase_node(node)
    module.recompile()


def plain_qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`vino::qk_norm_rope` without complex numbers, for which compilers generate nothing: the kernel's reference."""
    # Here and not above: the package of the kernel imports Triton where it is installed.
    from vino_kernels.qk_norm_rope.ref import norm_rope

    return norm_rope(x, weight, cos[:, None], sin[:, None])
