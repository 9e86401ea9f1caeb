"""Attention over the segments of a packed sequence with both products in int8, on x86 processors with AVX-512 VNNI.

Norm and rotation of queries and keys are part of it: it reads rows as their projections leave them. `ref.py` says what
is computed and judges it; `cpu.cpp` computes it and is compiled when an engine is built.
"""

from vino_kernels.int8_attention.library import Library, compile_library, missing_instructions
from vino_kernels.int8_attention.ref import Stream, int8_attention, int8_joint_attention

__all__ = ["Library", "Stream", "compile_library", "int8_attention", "int8_joint_attention", "missing_instructions"]
