"""The kernels in the form in which TensorRT launches them: inputs, then int32 numbers, then outputs.

`triton.py` has wrappers with arguments in that order, `declare.py` their constants and launch parameters, `ptx.py`
compiles the PTX that TensorRT embeds into a plan. Nothing here imports TensorRT.
"""
