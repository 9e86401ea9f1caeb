"""Hand-written kernels of vino_rt, one folder per operation, each with its plain reference and test.

Backends use them in place of the model's plain operations. `ahead/` compiles them without a GPU and launches them
without Triton. The package knows torch, Triton and CUDA's bindings, but no models, requests or engines.
"""
