"""VINO (arXiv 2601.02358): configuration, reference modules in plain PyTorch, conditioner and weight names."""
