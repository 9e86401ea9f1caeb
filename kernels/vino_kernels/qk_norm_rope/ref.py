"""The reference of `qk_norm_rope` and its gradient, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-6


def qk_norm_rope_ref(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, positions: Tensor, axes: Sequence[int], theta: float
) -> tuple[Tensor, Tensor]:
    """See `qk_norm_rope`. Computes in float32, or in float64 if q and k are float64."""
    cos, sin = _rotation(positions, axes, theta, _wide(q.dtype))
    return norm_rope(q, q_weight, cos, sin), norm_rope(k, k_weight, cos, sin)


def qk_norm_rope_grad(
    grad: Tensor, x: Tensor, weight: Tensor, positions: Tensor, axes: Sequence[int], theta: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x [L, H, C] (q or k) and its weight [C] from the gradient of the output.

    The forward pass is recomputed; its roundings are treated as the identity.
    """
    dtype = _wide(x.dtype)
    cos, sin = _rotation(positions, axes, theta, dtype)
    # The transpose of a rotation is the opposite rotation.
    turned_back = _rotate(grad.to(dtype), cos, -sin)
    wide = x.to(dtype)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    normed = wide * scale
    weight_grad = (turned_back * normed.to(x.dtype)).sum((0, 1))
    normed_grad = turned_back * weight
    x_grad = scale * (normed_grad - normed * (normed_grad * normed).mean(-1, keepdim=True))
    return x_grad.to(x.dtype), weight_grad.to(weight.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rotation(positions: Tensor, axes: Sequence[int], theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [L, 1, C/2] of every row and channel pair."""
    angles = []
    for axis, size in enumerate(axes):
        exponent = torch.arange(0, size, 2, dtype=dtype, device=positions.device) / size
        angles.append(positions[:, axis, None].to(dtype) * (1.0 / theta**exponent)[None])
    angle = torch.cat(angles, dim=-1)[:, None]
    return angle.cos(), angle.sin()


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS-normalise every head of x [L, H, C], times weight [C], and rotate its channel pairs by tables [L, 1, C/2]."""
    wide = x.to(_wide(x.dtype))
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)
    scaled = normed * weight
    return _rotate(scaled.to(_wide(scaled.dtype)), cos, sin).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
