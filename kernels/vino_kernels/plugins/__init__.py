"""The kernels as TensorRT launches them: inputs, then int32 numbers, then outputs, and nothing else.

`triton.py` puts each kernel's arguments into that order, `declare.py` says with what it is compiled and launched,
`ptx.py` makes the assembly that TensorRT puts into an engine. Nothing here imports TensorRT.
"""
