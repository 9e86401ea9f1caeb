"""Exported program -> one AOTInductor package whose weights are arguments: machine code for this processor.

The operators of our namespace become plain operations, which the compiler fuses; attention and matrix products stay
calls, for which it has nothing better on a CPU (bench/LOG.md).
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_export.notes import without_library_notes
from vino_export.program import export_with_arguments
from vino_rt.backends.aotinductor import DESCRIPTION, describe
from vino_rt.backends.base import Kind
from vino_rt.errors import EngineError
from vino_rt.models.vino.layers import NORM_EPS

MESSAGE_END = 1500
"""Characters of a compiler's output that are worth showing; the error comes last."""


def write_package(kind: Kind, path: Path) -> None:
    """Compile a kind to `path`: inputs in the spec's order, then its weights in the order of the module's state.

    Raises EngineError when there is no C++ compiler, when it fails, or when there is no room to compile in.
    """
    _require_compiler()
    options = {
        "aot_inductor.metadata": {DESCRIPTION: json.dumps(describe(kind))},
        # The number of threads is the caller's when the package runs, not what it was here.
        "cpp.dynamic_threads": True,
        "compile_threads": 1,
    }
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    workshop = _workshop().name
    try:
        with without_library_notes(), temporary_cache_dir(workshop), torch.no_grad():
            program = export_with_arguments(kind).run_decompositions(_decompositions())
            _fold_gelu(program.graph_module)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except OSError as error:
        raise EngineError(f"{kind.name}: cannot compile in {workshop}: {error}; make room there") from error
    except RuntimeError as error:
        raise EngineError(f"{kind.name}: AOTInductor cannot compile it: {str(error)[-MESSAGE_END:]}") from error


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise EngineError(
            "building for backend 'aotinductor' needs a C++ compiler; install g++ (on Debian and Ubuntu: "
            "apt-get install g++) or name yours in the environment variable CXX. What is built runs without one"
        ) from error


@functools.cache
def _workshop() -> tempfile.TemporaryDirectory[str]:
    """Where the compiler keeps what one kind leaves for the next; gone when the process ends, never the user's own."""
    return tempfile.TemporaryDirectory(prefix="vino-rt-compile-")


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        **torch.export.default_decompositions(),
        torch.ops.vino.norm_modulate.default: plain_norm_modulate,
        torch.ops.vino.qk_norm_rope.default: plain_qk_norm_rope,
        torch.ops.aten.linear.default: lambda x, weight, bias: torch.ops.vino.linear(x, weight, bias, False),
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


def plain_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`vino::norm_modulate` of PyTorch's own operators, which a compiler fuses."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def plain_qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`vino::qk_norm_rope` without complex numbers, for which compilers generate nothing."""
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)
    scaled = (normed * weight).float()
    real, imaginary = scaled.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1).flatten(-2).to(x.dtype)
