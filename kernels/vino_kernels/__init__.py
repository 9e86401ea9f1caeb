"""Hand-written kernels of vino_rt, one folder per operation, each with its plain reference and test.

The model does not call them yet: it runs on PyTorch's own operations. The package knows torch and triton and nothing of
models, requests or engines.
"""
