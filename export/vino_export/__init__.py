"""From reference module to verified engine: trace, write the canonical ONNX file, measure it against eager.

Only `vino-rt build` imports this package. It knows the reference modules and the file formats of engines; it knows
nothing of requests, media or the step loop.
"""
