"""Kernels compiled ahead of time: cubins for named GPU architectures, and a loader that launches them without Triton.

`shapes.py` a model's sizes -> `declare.py` its `Variant`s -> `compiler.py` cubins, on a machine without a GPU ->
`build.py` a directory with `manifest.json` -> `loader.py` launches. `python -m vino_kernels.ahead` builds. A launch
needs the directory and `cuda.bindings.driver`; importing this package loads neither the bindings nor Triton.
"""
