"""The compiled kernel: instructions that it needs, its compilation, and its shared library."""

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vino_kernels.int8_attention.ref import Stream

SOURCE = Path(__file__).with_name("cpu.cpp")
"""Includes `packed.h` beside it."""
FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread",
    "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma",
)  # fmt: skip
"""Compiler flags for g++ and clang++."""
INSTRUCTIONS = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni", "fma3")
"""Instruction sets that the flags enable, by PyTorch's names."""
MESSAGE_END = 1500
"""Characters of a compiler's output that an error shows."""
GROUP, MOST_CHANNELS = 4, 256
NO_MEMORY, NO_PLACE = 1, 2


def missing_instructions() -> tuple[str, ...]:
    """Instruction sets that the kernel needs and this processor lacks."""
    found = torch.cpu.get_capabilities()
    return tuple(name for name in INSTRUCTIONS if not found.get(name))


def compile_library(compiler: str) -> bytes:
    """Compile `cpu.cpp` with g++ or clang++ to a shared library; RuntimeError with its output if it fails."""
    with tempfile.TemporaryDirectory(prefix="vino-rt-kernel-") as directory:
        path = Path(directory) / "kernel.so"
        done = subprocess.run([compiler, *FLAGS, SOURCE, "-o", path], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot compile {SOURCE.name}: {done.stderr[-MESSAGE_END:]}")
        return path.read_bytes()


@functools.cache
def _loaded(content: bytes) -> ctypes.CDLL:
    handle = os.memfd_create("vino-int8-attention")
    with open(handle, "wb", closefd=False) as file:
        file.write(content)
    # Keep the descriptor open: the loader identifies libraries by path, and a reused number would mean another file.
    return ctypes.CDLL(f"/proc/self/fd/{handle}")


class Library:
    """A compiled `cpu.cpp`, loaded from memory, so that the bytes that were verified are those that run."""

    def __init__(self, content: bytes) -> None:
        """content: bytes of the shared library; OSError if it cannot be loaded."""
        self._call = _loaded(content).vino_int8_attention
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._call.argtypes = [
            pointer, pointer, number, pointer, pointer, pointer, pointer, number, number, number, number, pointer,
        ]  # fmt: skip
        self._call.restype = number

    def attend(
        self, streams: Sequence[Stream], cos: Tensor, sin: Tensor, offsets: Tensor, order: Tensor | None, threads: int
    ) -> Tensor:
        """See `int8_joint_attention`; CPU tensors. The result is the same for any number of threads, bit for bit.

        Raises ValueError for a head size that is above 256 or not a multiple of 4, and for tensors that do not fit
        together, and MemoryError.
        """
        channels, width, length = 2 * cos.shape[1], streams[0].q.shape[1], sum(len(stream.q) for stream in streams)
        if channels % GROUP or channels > MOST_CHANNELS:
            raise ValueError(f"int8 attention takes head sizes up to {MOST_CHANNELS} that 4 divides, not {channels}")
        _check(streams, cos, sin, offsets, order)
        flat = [tensor for stream in streams for tensor in stream]
        rows = (ctypes.c_void_p * len(flat))(*(tensor.data_ptr() for tensor in flat))
        lengths = (ctypes.c_int64 * len(streams))(*(len(stream.q) for stream in streams))
        out = torch.empty(length, width)
        where = None if order is None else order.data_ptr()
        sizes = len(offsets) - 1, width // channels, channels, threads
        tables = cos.data_ptr(), sin.data_ptr(), where, offsets.data_ptr()
        ended = self._call(rows, lengths, len(streams), *tables, *sizes, out.data_ptr())
        if ended == NO_MEMORY:
            raise MemoryError("int8 attention: no memory for packed keys and values")
        if ended == NO_PLACE:
            raise ValueError(f"int8 attention takes an order of rows from 0 to {length - 1}")
        return out


def _check(streams: Sequence[Stream], cos: Tensor, sin: Tensor, offsets: Tensor, order: Tensor | None) -> None:
    """Raise ValueError for tensors that the kernel would misread or read beyond their ends."""
    width, half = streams[0].q.shape[1], cos.shape[1]
    length = sum(len(stream.q) for stream in streams)
    wanted: list[tuple[Tensor, tuple[int, ...], torch.dtype]] = [
        (cos, (length, half), torch.float32), (sin, (length, half), torch.float32),
        (offsets, (len(offsets),), torch.int32),
    ]  # fmt: skip
    if order is not None:
        wanted.append((order, (length,), torch.int64))
    for stream in streams:
        wanted += [(rows, (len(stream.q), width), torch.float32) for rows in stream[:3]]
        wanted += [(weight, (2 * half,), torch.float32) for weight in stream[3:]]
    told = [(tuple(x.shape), x.dtype, x.is_contiguous()) for x, _, _ in wanted]
    if told != [(shape, dtype, True) for _, shape, dtype in wanted] or width % (2 * half) or int(offsets[-1]) != length:
        raise ValueError(
            "int8 attention takes contiguous tables [L, C/2], offsets up to L, an order [L], q, k, v [rows, H * C] and "
            f"weights [C], not {told}"
        )
