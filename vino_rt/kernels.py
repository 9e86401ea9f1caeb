"""The model's hot operations as kernels; the only file of this package that imports `vino_kernels`."""

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
"""Number of tensors in one `ops.Stream`."""


class Int8Attention(Protocol):
    """int8 attention on the CPU, see `ops.joint_attention`; all tensors must be contiguous."""

    def __call__(
        self, flat: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor, orders: Tensor | None = None
    ) -> Tensor:
        """flat: the `STREAM` tensors of each stream in turn. The rest and the result: see `ops.joint_attention`."""


@functools.cache
def compile_one_kernel(device: torch.device) -> None:
    """Check Triton by compiling and running a small kernel on a CUDA device; EngineError says what it needs."""
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
    """The hot operations through the kernel dispatcher: kernels on CUDA tensors, their references on the CPU."""
    # Not at the top: registering the operations imports Triton where it is installed.
    from vino_kernels.choice import dispatch

    def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
        return dispatch.qk_norm_rope(q, k, q_weight, k_weight, rope.positions, rope.axes, rope.theta)

    return Operations(rotate, dispatch.boundary_attention, dispatch.norm_modulate, dispatch.gated_residual)


def kernel_end() -> End:
    """The end of a denoise step through the kernel dispatcher: guidance and Euler update in one pass, in float32."""
    from vino_kernels.choice import dispatch

    return dispatch.guide_and_step


def kernel_nodes() -> Operations:
    """The hot operations as our Triton kernels whatever the size, for programs exported to a compiler for CUDA.

    Without the dispatcher: its choice depends on the size of a call, and an exported program serves every size.
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
    """The plain operations, with attention rounded as our int8 CPU kernel rounds it: the reference of its engines."""
    from vino_kernels.int8_attention import int8_attention

    return replace(PLAIN, boundary_attention=int8_attention)


def compile_int8_attention(compiler: str) -> bytes:
    """Compile our int8 CPU attention into a shared library; EngineError with the compiler's output if that fails."""
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
    """Load a library of `compile_int8_attention` and return its function, which runs on `threads` threads.

    where: begins error messages. Raises EngineError if the library cannot be loaded or this processor lacks the
    instructions. The function itself raises EngineError for an unsupported head size, and OutOfMemory.
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
