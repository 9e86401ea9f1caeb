"""The reference of `gated_residual` in plain PyTorch."""

from torch import Tensor


def gated_residual_ref(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """See `gated_residual`. Every operation rounds to x's dtype, as in the model."""
    return (x + gate * y).to(x.dtype)
