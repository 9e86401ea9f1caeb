"""Attention over the segments of a packed sequence with both products in int8, on x86 processors with AVX-512 VNNI.

`ref.py` says what is computed and judges it; `cpu.cpp` computes it and is compiled when an engine is built.
"""

from vino_kernels.int8_attention.library import Library, compile_library, missing_instructions
from vino_kernels.int8_attention.ref import int8_attention

__all__ = ["Library", "compile_library", "int8_attention", "missing_instructions"]
