"""int8 linear layers: which weights of a kind are quantised, and the same arithmetic in PyTorch for verification.

Linear layers use symmetric per-output-channel int8 weights and dynamic per-tensor uint8 activations. When a layer's
input is a concatenation, each part is quantised with its own scale and the concatenation is never materialised.
Accumulation is exact; results are float32. Everything else stays float32: attention, norms, rotations, gates, and the
residual stream.

Weights stay arguments: at the sequence lengths of a step ONNX Runtime is as fast as with constants (bench/LOG.md).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.backends.base import QUANTISED, Kind
from vino_rt.backends.onnxruntime import quantise
from vino_rt.errors import EngineError

LEVELS = 255
"""Quantisation steps between the least and the largest uint8 value."""


def quantised_weights(kind: Kind) -> tuple[str, ...]:
    """Names of the weights [O, I] of a kind that become int8: those of all Linears at an int8 precision, else none.

    Raises EngineError if such a kind has no Linear, or a Linear without bias, which is exported as another operator.
    """
    if kind.precision not in QUANTISED:
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
    """A Linear that quantises weights and activations as an engine does, then multiplies in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scale = quantise(linear.weight.detach())
        self.weight = nn.Parameter((values.float() * scale).T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, *parts: Tensor) -> Tensor:
        """[L, I] in one tensor or, for a `JoinedLinear`, in several, each with its own scale -> [L, O]."""
        return F.linear(torch.cat([_quantised(part) for part in parts], dim=-1), self.weight, self.bias)


def _quantised(x: Tensor) -> Tensor:
    """Quantise to uint8 with one scale and zero point per tensor, and dequantise to float32."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    step = (high - low) / LEVELS if high > low else torch.ones_like(low)
    zero = (-low / step).round()
    levels = ((x / step).round() + zero).clamp(0, LEVELS)
    return (levels - zero) * step


def with_int8_linears(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Replace each Linear whose weight is named by an `Int8Linear`, in place, and return the module."""
    for name in names:
        path = name.removesuffix(".weight")
        linear = module.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        module.set_submodule(path, Int8Linear(linear))
    return module
