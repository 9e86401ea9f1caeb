"""The noise that a request is denoised from; knows the request's settings and no model."""

import torch
from torch import Tensor

from vino_rt.request import FRAME_STEP, LATENT_PIXELS
from vino_rt.settings import Settings


def draw_noise(settings: Settings, channels: int) -> Tensor:
    """Initial latents of a request, float32 [C, F, H, W] on the CPU, determined by its seed and size.

    Drawn in bfloat16 on the CPU, as in the released pipeline, so that a seed gives the same noise here (bit for bit on
    the golden pipelines).
    """
    frames = (settings.frames - 1) // FRAME_STEP + 1
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, channels, frames, settings.height // LATENT_PIXELS, settings.width // LATENT_PIXELS)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16)[0].float()
