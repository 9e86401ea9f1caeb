"""LayerNorm or RMSNorm without affine, then shift and scale of the step, optionally quantised to fp8."""

import torch
from torch import Tensor

from vino_kernels.launching import kernel_of
from vino_kernels.norm_modulate.ref import norm_modulate_ref

NAME = "vino_kernels::norm_modulate"


def norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, rms: bool = False, out_scale: Tensor | None = None
) -> Tensor:
    """norm(x) * (1 + scale) + shift of rows x [L, D] with scale and shift [D], eps 1e-6 (MODEL.md section 4, AdaLN).

    rms: RMSNorm instead of LayerNorm. The kernel computes in float32 and rounds once.
    out_scale: float32, one element on x's device; the result is divided by it, clamped to +-448 and returned as
    float8_e4m3fn [L, D]; on a GPU this takes compute capability 8.9. Without it, [L, D] in x's dtype.
    Raises ValueError for shapes that do not fit.
    """
    if x.dim() != 2 or shift.shape != x.shape[1:] or scale.shape != x.shape[1:]:
        shapes = f"{tuple(x.shape)}, {tuple(shift.shape)} and {tuple(scale.shape)}"
        raise ValueError(f"x, shift and scale are {shapes}; must be [L, D], [D] and [D]")
    if out_scale is not None and (out_scale.numel() != 1 or out_scale.dtype != torch.float32):
        raise ValueError(f"out_scale is {out_scale.dtype} {tuple(out_scale.shape)}; must be float32 with one element")
    modulated: Tensor = _op(x, shift, scale, rms, out_scale)
    return modulated


@torch.library.triton_op(NAME, mutates_args=())
def _op(x: Tensor, shift: Tensor, scale: Tensor, rms: bool, out_scale: Tensor | None) -> Tensor:
    run = norm_modulate_ref if x.device.type == "cpu" else kernel_of("norm_modulate")
    modulated: Tensor = run(x, shift, scale, rms, out_scale)
    return modulated
