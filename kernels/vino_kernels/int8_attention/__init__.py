"""Attention over the segments of a packed sequence with both matmuls in int8, on x86 processors with AVX-512 VNNI.

It includes norm and rotation of queries and keys, so its inputs are the plain projections. `ref.py` is the reference;
`cpu.cpp` is the implementation, compiled when an engine is built.
"""

from vino_kernels.int8_attention.library import Library, compile_library, missing_instructions
from vino_kernels.int8_attention.ref import Stream, int8_attention, int8_joint_attention

__all__ = ["Library", "Stream", "compile_library", "int8_attention", "int8_joint_attention", "missing_instructions"]
