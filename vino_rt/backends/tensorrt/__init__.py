"""TensorRT on an NVIDIA GPU: runs plans built by `vino_export.tensorrt`, with one execution context per size.

Written against the API common to 10.16 and 11.x and checked against NVIDIA's bindings of both (tests/tensorrt/); it has
not run on the library itself. Importing it does not import `tensorrt`.
"""
