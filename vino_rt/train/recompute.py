"""Less memory for more time: modules that forget their activations and compute them again for the gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(modules: Sequence[nn.Module]) -> None:
    """Make every module that lies in no other of `modules` forget its activations; values stay the same to the bit.

    Must come before the modules are sharded, so that the gathering of weights stays outside of what is repeated.
    """
    inside = {inner for module in modules for inner in module.modules() if inner is not module}
    for module in modules:
        if module not in inside:
            module.forward = _forgetting(module.forward)


def _forgetting(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
