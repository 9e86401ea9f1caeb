"""TensorRT on an NVIDIA GPU: plans built by `vino_export.tensorrt`, run one context per size.

Written against the API that 10.16 and 11.x have in common, checked against NVIDIA's bindings of both
(tests/tensorrt/); nothing in here has run on the library itself. Importing it does not import `tensorrt`.
"""
