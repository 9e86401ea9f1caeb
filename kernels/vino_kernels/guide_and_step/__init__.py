"""The end of a denoise step: the mix of the guidance branches and the Euler update, in one pass."""

import torch
from torch import Tensor

from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.launching import kernel_of

NAME = "vino_kernels::guide_and_step"
MOST_BRANCHES = 3


def guide_and_step(latents: Tensor, velocity: Tensor, guidance: Tensor, delta: Tensor) -> Tensor:
    """latents - delta * v, where v mixes the velocities of one to three branches (MODEL.md section 5).

    latents: any shape [...]; velocity: [branches, ...]; guidance: float32 [2], of the prompt g and of the images gi;
    delta: float32, one element. Both lie on the device, so that a captured graph replays with other values.
    One branch: v itself. Two (p, n): n + g*(p - n). Three (p, n, m): m + gi*(n - m) + g*(p - n).
    Accumulates in float32 and rounds once; returns the shape and dtype of latents.
    Raises ValueError for shapes that do not fit.
    """
    if not 1 <= velocity.shape[0] <= MOST_BRANCHES or velocity.shape[1:] != latents.shape:
        shapes = f"{tuple(latents.shape)} and {tuple(velocity.shape)}"
        raise ValueError(f"latents and velocity are {shapes}; must be [...] and [branches, ...], 1 to 3 branches")
    if tuple(guidance.shape) != (2,) or delta.numel() != 1 or {guidance.dtype, delta.dtype} != {torch.float32}:
        raise ValueError("guidance must be float32 [2] and delta float32 with one element")
    stepped: Tensor = _op(latents, velocity, guidance, delta)
    return stepped


@torch.library.triton_op(NAME, mutates_args=())
def _op(latents: Tensor, velocity: Tensor, guidance: Tensor, delta: Tensor) -> Tensor:
    run = guide_and_step_ref if latents.device.type == "cpu" else kernel_of("guide_and_step")
    stepped: Tensor = run(latents, velocity, guidance, delta)
    return stepped
