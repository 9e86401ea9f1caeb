"""The only file of this package that imports `vino_kernels`: hands out the model's hot operations as kernels."""

import functools
import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor

from vino_kernels.choice import OPERATIONS, Device, Needs, Shape, choose
from vino_rt.backends.base import REBUILD
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.memory import is_shortage
from vino_rt.models.vino.ops import PLAIN, Operations, RopeTables, Stream
from vino_rt.step import End

__all__ = [
    "OPERATIONS",
    "STREAM",
    "Device",
    "Int8Attention",
    "Needs",
    "Shape",
    "check_int8_attention",
    "choose",
    "compile_int8_attention",
    "compile_one_kernel",
    "int8_attention_operations",
    "kernel_end",
    "kernel_nodes",
    "kernel_operations",
    "load_int8_attention",
]
STREAM = len(fields(Stream))
"""Tensors that describe one `ops.Stream`."""


class Int8Attention(Protocol):
    """int8 attention on the CPU; see `ops.joint_attention`. All tensors are contiguous."""

    def __call__(
        self, flat: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor, orders: Tensor | None = None
    ) -> Tensor:
        """`flat`: the tensors of all streams, one stream after the other."""


@functools.cache
def compile_one_kernel(device: torch.device) -> None:
    """Compile and run a small kernel on a CUDA device; EngineError where Triton cannot, with what it needs."""
    from vino_kernels.gated_residual import gated_residual

    rows, gate = torch.ones(2, 16, device=device), torch.ones(16, device=device)
    try:
        result = gated_residual(rows, gate, rows).cpu()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        if is_shortage(error):
            raise
        raise EngineError(
            f"backend 'triton' cannot compile a kernel here: {error}; it needs a C compiler (gcc or clang on "
            "the PATH, or named by CC) and Python's headers (package python3-dev). Or take a recipe whose engines are "
            "built ahead of time, such as aotinductor-cuda"
        ) from error
    if not bool((result == 2).all()):
        raise EngineError(
            f"a kernel compiled by Triton computes wrong values on {device}; check its version and driver"
        )


def kernel_operations() -> Operations:
    """The hot operations as the dispatcher runs them: kernels on CUDA tensors, their references on the CPU."""
    # Here and not above: registering the operations imports Triton where it is installed.
    from vino_kernels.choice import dispatch

    def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
        return dispatch.qk_norm_rope(q, k, q_weight, k_weight, rope.positions, rope.axes, rope.theta)

    return Operations(rotate, dispatch.boundary_attention, dispatch.norm_modulate, dispatch.gated_residual)


def kernel_end() -> End:
    """The end of a denoise step as the dispatcher runs it: guidance and Euler step in one pass, in float32."""
    from vino_kernels.choice import dispatch

    return dispatch.guide_and_step


def kernel_nodes() -> Operations:
    """The hot operations as our kernels at every size, for exports to a compiler on CUDA, which keep them as nodes.

    The dispatcher is not asked: its choice depends on the size of a call, and an exported program serves every size.
    """
    from vino_kernels.boundary_attention import boundary_attention
    from vino_kernels.gated_residual import gated_residual
    from vino_kernels.norm_modulate import norm_modulate
    from vino_kernels.qk_norm_rope import qk_norm_rope

    def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
        return qk_norm_rope(q, k, q_weight, k_weight, rope.positions, rope.axes, rope.theta)

    def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return boundary_attention(q, k, v, offsets)[0]

    return Operations(rotate, attend, norm_modulate, gated_residual)


def int8_attention_operations() -> Operations:
    """The plain operations, attention rounded as our kernel for the CPU rounds it: what judges an engine with it."""
    from vino_kernels.int8_attention import int8_attention

    return replace(PLAIN, boundary_attention=int8_attention)


def compile_int8_attention(compiler: str) -> bytes:
    """Our int8 attention for the CPU as a shared library; EngineError with the compiler's words where it fails."""
    from vino_kernels.int8_attention import compile_library

    try:
        return compile_library(compiler)
    except RuntimeError as error:
        raise EngineError(f"int8 attention: {error}") from error


def check_int8_attention(where: str) -> None:
    """Raise EngineError where this processor has not the instructions that our int8 attention is made of."""
    from vino_kernels.int8_attention import missing_instructions

    if missing := missing_instructions():
        raise EngineError(f"{where}: int8 attention needs {', '.join(missing)} of the processor; use recipe 'cpu-int8'")


def load_int8_attention(where: str, library: bytes, threads: int) -> Int8Attention:
    """Load that library, to run with so many threads; EngineError where it or this processor cannot be used.

    The function returned raises EngineError for a head size that the kernel does not support, and OutOfMemory.
    """
    from vino_kernels.int8_attention import Library, Stream

    check_int8_attention(where)
    try:
        loaded = Library(library)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{where}: its kernel cannot be loaded ({error}); {REBUILD}") from error

    def attend(
        flat: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor, orders: Tensor | None = None
    ) -> Tensor:
        streams = [Stream(*flat[i : i + STREAM]) for i in range(0, len(flat), STREAM)]
        try:
            return loaded.attend(streams, cos, sin, offsets, None if orders is None else orders[0], threads)
        except MemoryError as error:
            raise OutOfMemory(f"{where}: {error}; use a smaller size or fewer frames") from error
        except ValueError as error:
            raise EngineError(f"{where}: {error}; use recipe 'cpu-int8'") from error

    return attend
