"""The compiled kernel: what it needs of a processor, how it is compiled, and the library that holds it."""

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu.cpp")
"""It reads `packed.h` beside it."""
FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread",
    "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma",
)  # fmt: skip
"""For g++ and clang++."""
INSTRUCTIONS = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni", "fma3")
"""What these flags let the compiler use, by PyTorch's names."""
MESSAGE_END = 1500
"""Characters of a compiler's output that are worth showing."""
GROUP, MOST_CHANNELS = 4, 256


def missing_instructions() -> tuple[str, ...]:
    """What the kernel needs and this processor has not."""
    found = torch.cpu.get_capabilities()
    return tuple(name for name in INSTRUCTIONS if not found.get(name))


def compile_library(compiler: str) -> bytes:
    """The shared library of `cpu.cpp`, by g++ or clang++; RuntimeError with the compiler's words where it fails."""
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
    # Left open: the loader knows libraries by their paths, and another file under this number would be taken for it.
    return ctypes.CDLL(f"/proc/self/fd/{handle}")


class Library:
    """A compiled `cpu.cpp`, loaded from memory: what was checked is what runs."""

    def __init__(self, content: bytes) -> None:
        """Raises OSError for what is no shared library."""
        self._call = _loaded(content).vino_int8_attention
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._call.argtypes = [pointer, pointer, pointer, pointer, number, number, number, number, pointer]
        self._call.restype = number

    def attend(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, threads: int) -> Tensor:
        """See `int8_attention`; tensors on the CPU, float32 and int32. The same bits for any number of threads.

        Raises ValueError for a head size that is not a multiple of 4 or above 256 and for tensors that do not fit each
        other, MemoryError.
        """
        rows, heads, channels = q.shape
        if channels % GROUP or channels > MOST_CHANNELS:
            raise ValueError(f"int8 attention takes head sizes up to {MOST_CHANNELS} that 4 divides, not {channels}")
        given = (q, k, v, offsets)
        told = [(tuple(x.shape), x.dtype, x.is_contiguous()) for x in given]
        rightly = [((rows, heads, channels), torch.float32, True)] * 3 + [((len(offsets),), torch.int32, True)]
        if told != rightly or int(offsets[-1]) != rows:
            raise ValueError(f"int8 attention takes contiguous q, k, v [L, H, C] and offsets up to L, not {told}")
        out = torch.empty_like(q)
        pointers = (x.data_ptr() for x in given)
        if self._call(*pointers, len(offsets) - 1, heads, channels, threads, out.data_ptr()):
            raise MemoryError("int8 attention: no memory for packed keys and values")
        return out
