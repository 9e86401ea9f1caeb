"""The noise that a request starts from; knows its settings and no model."""

import torch
from torch import Tensor

from vino_rt.request import FRAME_STEP, LATENT_PIXELS
from vino_rt.settings import Settings


def draw_noise(settings: Settings, channels: int) -> Tensor:
    """Initial latents float32 [C, F, H, W] of a request, fixed by its seed.

    Drawn in bfloat16 on the CPU: that is what the released pipeline does, so its seeds mean the same here (measured on
    the golden pipelines: equal to the bit).
    """
    frames = (settings.frames - 1) // FRAME_STEP + 1
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, channels, frames, settings.height // LATENT_PIXELS, settings.width // LATENT_PIXELS)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16)[0].float()
