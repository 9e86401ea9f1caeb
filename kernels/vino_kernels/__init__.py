"""Hand-written kernels of vino_rt, one folder per operation, each with its plain reference and test.

A backend puts them in the place of the model's own operations. `ahead/` compiles them without a GPU and launches them
without Triton. The package knows torch, triton and CUDA's bindings and nothing of models, requests or engines.
"""
