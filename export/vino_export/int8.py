"""int8 products: which of a kind there are, and the same arithmetic in PyTorch to verify an engine against.

Every product with a Linear's weight takes an int8 weight, one scale for each output channel, symmetric, and uint8
activations, one step and zero point for all rows of a call, found while it runs; where its channels come from several
tensors, which are then never joined, for each of them. Sums are exact integers, results
float32. Everything else stays float32: attention, norms, rotations, gates, and the stream that blocks add to.

Weights stay arguments: at the lengths of a step ONNX Runtime multiplies these as fast as constants (bench/LOG.md).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.backends.base import ROUNDED, Kind
from vino_rt.backends.onnxruntime import quantise
from vino_rt.errors import EngineError

LEVELS = 255
"""Steps between the least and the largest value of a uint8 activation."""


def quantised_weights(kind: Kind) -> tuple[str, ...]:
    """Names of the weights [O, I] of a kind that become int8: all Linears' at an int8 precision, else none.

    Raises EngineError for a kind at such a precision that has none, or one without a bias, which is exported as another
    product.
    """
    if kind.precision not in ROUNDED:
        return ()
    with torch.device("meta"):
        modules = kind.build().named_modules()
        linears = {name: module for name, module in modules if isinstance(module, nn.Linear)}
    if not linears:
        raise EngineError(f"{kind.name}: it has no Linear to compute in int8; let the recipe keep it in float32")
    if plain := [name for name, linear in linears.items() if linear.bias is None]:
        raise EngineError(f"{kind.name}: int8 needs a bias, {plain} have none; let the recipe keep it in float32")
    return tuple(f"{name}.weight" for name in linears)


class Int8Linear(nn.Module):
    """A Linear that rounds weights and activations as an engine does, and multiplies what that leaves in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scale = quantise(linear.weight.detach())
        self.weight = nn.Parameter((values.float() * scale).T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, *parts: Tensor) -> Tensor:
        """[L, I] in one tensor or, for a `JoinedLinear`, in several, each in steps of its own -> [L, O]."""
        return F.linear(torch.cat([_in_steps(part) for part in parts], dim=-1), self.weight, self.bias)


def _in_steps(x: Tensor) -> Tensor:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    step = (high - low) / LEVELS if high > low else torch.ones_like(low)
    zero = (-low / step).round()
    levels = ((x / step).round() + zero).clamp(0, LEVELS)
    return (levels - zero) * step


def with_int8_products(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Put an `Int8Linear` in the place of each Linear whose weight is named, and return the module."""
    for name in names:
        path = name.removesuffix(".weight")
        linear = module.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        module.set_submodule(path, Int8Linear(linear))
    return module
