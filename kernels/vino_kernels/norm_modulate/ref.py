"""The reference of `norm_modulate` in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
FP8_MAX = 448.0
"""The largest float8_e4m3fn; larger values would become NaN."""


def norm_modulate_ref(x: Tensor, shift: Tensor, scale: Tensor, rms: bool, out_scale: Tensor | None) -> Tensor:
    """See `norm_modulate`. Every operation rounds to x's dtype, as in the model."""
    norm = F.rms_norm if rms else F.layer_norm
    modulated = (norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift).to(x.dtype)
    if out_scale is None:
        return modulated
    wide = modulated.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / out_scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
