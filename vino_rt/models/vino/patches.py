"""Latents to rows of patches and back; the values of a patch are ordered (C, pt, ph, pw) (MODEL.md section 4)."""

from torch import Tensor

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.plan import Grid


def patch_grid(config: TransformerConfig, frames: int, height: int, width: int) -> Grid:
    """Patches along t, h and w of latents with these frames, height and width."""
    p = config.patch_size
    return frames // config.patch_size_t, height // p, width // p


def patchify(latents: Tensor, config: TransformerConfig) -> Tensor:
    """[C, F, H, W] -> [F/pt * H/p * W/p, C*pt*p*p], patches in (t, h, w) order."""
    c, frames, height, width = latents.shape
    pt, p = config.patch_size_t, config.patch_size
    cut = latents.reshape(c, frames // pt, pt, height // p, p, width // p, p)
    return cut.permute(1, 3, 5, 0, 2, 4, 6).reshape(-1, c * pt * p * p)


def unpatchify(rows: Tensor, grid: Grid, config: TransformerConfig) -> Tensor:
    """[t*h*w, C*pt*p*p] -> [C, F, H, W]; the inverse of `patchify`."""
    pt, p, c = config.patch_size_t, config.patch_size, config.out_channels
    t, h, w = grid
    cut = rows.reshape(t, h, w, c, pt, p, p).permute(3, 0, 4, 1, 5, 2, 6)
    return cut.reshape(c, t * pt, h * p, w * p)
