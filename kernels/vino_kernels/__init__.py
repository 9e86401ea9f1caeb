"""Hand-written kernels of vino_rt, one folder per operation, each with its plain reference and test.

The model does not call them yet: it runs on PyTorch's own operations. `ahead/` compiles them without a GPU and launches
them without Triton. The package knows torch, triton and CUDA's bindings and nothing of models, requests or engines.
"""
