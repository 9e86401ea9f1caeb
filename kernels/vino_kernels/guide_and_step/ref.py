"""The reference of `guide_and_step` in plain PyTorch."""

import torch
from torch import Tensor


def guide_and_step_ref(latents: Tensor, velocity: Tensor, guidance: Tensor, delta: Tensor) -> Tensor:
    """See `guide_and_step`. Computes in float32, or in float64 if latents or velocity are float64."""
    dtype = torch.promote_types(torch.promote_types(latents.dtype, velocity.dtype), torch.float32)
    prompt, images = guidance.to(dtype)
    mixed, *others = velocity.to(dtype)
    if len(others) == 1:
        mixed = others[0] + prompt * (mixed - others[0])
    elif others:
        negative, bare = others
        mixed = bare + images * (negative - bare) + prompt * (mixed - negative)
    stepped: Tensor = latents.to(dtype) - delta.to(dtype).reshape(()) * mixed
    return stepped.to(latents.dtype)
