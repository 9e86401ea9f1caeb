"""Hand-written kernels of vino_rt, one folder per operation, each with its plain reference, test and benchmark.

The package is empty: the reference model runs on PyTorch's own operations. It knows torch and triton and nothing
of models, requests or engines.
"""
