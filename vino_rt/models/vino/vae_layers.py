"""The layers of the video autoencoder, under the parameter names of diffusers' `AutoencoderKLHunyuanVideo`.

Every convolution is causal in time: a frame depends on itself and on earlier frames. Two modules compute the library's
function differently. The middle block's attention needs no dense (T*N)^2 mask, which would not fit into memory at real
sizes. The upsampler does not branch on the number of frames, so that one exported graph serves every length.

Shapes: B batch, D channels, T frames, h height and w width at the level in question, N = h*w.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vino_rt.models.vino.vae_config import MAX_TILE_LATENTS, SPATIAL_LEVELS, TEMPORAL_LEVELS, VaeConfig

EPS = 1e-6
Factors = tuple[int, int, int]
"""Factors by which a level divides or multiplies frames, height and width."""


def frame_causal_attention(query: Tensor, key: Tensor, value: Tensor, max_frames: int = MAX_TILE_LATENTS) -> Tensor:
    """Attention of one head in which frame t sees every token of frames 0..t, computed without a mask.

    query, key, value: [B,T,N,D] of one floating dtype. Returns [B,T,N,D]. Loops over the distance between frames with a
    running softmax in float32, so that T*N*N scores are alive at a time, not (T*N)^2, and every step is a plain dense
    operation. An export unrolls `max_frames` distances: later frames come out as NaN rather than silently wrong.
    """
    frames, exporting = query.shape[1], torch.compiler.is_exporting()
    index = torch.arange(frames, device=query.device)[:, None, None]
    scaled = query * query.shape[-1] ** -0.5
    mixed = torch.zeros_like(value, dtype=torch.float32)
    total = torch.zeros_like(mixed[..., :1])
    peak = torch.full_like(total, float("-inf"))
    for distance in range(max_frames if exporting else frames):
        scores = (scaled @ _delayed(key, distance).transpose(-1, -2)).float()
        if distance:
            scores = scores.masked_fill(index < distance, float("-inf"))
        higher = torch.maximum(peak, scores.amax(dim=-1, keepdim=True))
        weights, kept = (scores - higher).exp(), (peak - higher).exp()
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        mixed = mixed * kept + weights.to(value.dtype) @ _delayed(value, distance)
        peak = higher
    result = (mixed / total).to(query.dtype)
    return result.masked_fill(index >= max_frames, float("nan")) if exporting else result


def _delayed(rows: Tensor, distance: int) -> Tensor:
    """Shift rows [B,T,N,D] by `distance` frames towards later frames, with zeros in front."""
    # Pad, then slice: a slice that might be empty would specialise an exported graph to the T of its example.
    return functional.pad(rows, (0, 0, 0, 0, distance, 0))[:, : rows.shape[1]] if distance else rows


class CausalConv3d(nn.Module):
    """A 3D convolution, causal in time; pads by repeating the first frame and the border pixels."""

    def __init__(self, entering: int, leaving: int, size: int = 3, stride: int | Factors = 1) -> None:
        super().__init__()
        self.time_causal_padding = (size // 2,) * 4 + (size - 1, 0)
        self.conv = nn.Conv3d(entering, leaving, size, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,D,T,h,w] to [B,D',T',h',w']."""
        return cast(Tensor, self.conv(functional.pad(hidden, self.time_causal_padding, mode="replicate")))


class ResidualBlock(nn.Module):
    """Two convolutions, each after norm and SiLU, added to the input, which a 1x1x1 convolution adapts if need be."""

    def __init__(self, entering: int, leaving: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, entering, eps=EPS)
        self.conv1 = CausalConv3d(entering, leaving)
        self.norm2 = nn.GroupNorm(groups, leaving, eps=EPS)
        self.conv2 = CausalConv3d(leaving, leaving)
        self.conv_shortcut = CausalConv3d(entering, leaving, size=1) if entering != leaving else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,D,T,h,w] to [B,D',T,h,w]."""
        hidden = hidden.contiguous()
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return cast(Tensor, inner + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)))


class FrameCausalAttention(nn.Module):
    """The attention layer of the middle block, with one head of the block's full width."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, hidden: Tensor) -> Tensor:
        """Attention plus residual: [B,D,T,h,w] -> the same shape."""
        height, width = hidden.shape[3:]
        rows = self.group_norm(hidden).permute(0, 2, 3, 4, 1).flatten(2, 3)
        mixed: Tensor = self.to_out[0](frame_causal_attention(self.to_q(rows), self.to_k(rows), self.to_v(rows)))
        return hidden + mixed.reshape(*rows.shape[:2], height, width, -1).permute(0, 4, 1, 2, 3)


class MidBlock(nn.Module):
    """The middle block of encoder and decoder: residual block, attention, residual block."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        attention = FrameCausalAttention(width, groups) if config.mid_block_add_attention else nn.Identity()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(ResidualBlock(width, width, groups) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden [B,D,T,h,w] to the same shape."""
        return cast(Tensor, self.resnets[1](self.attentions[0](self.resnets[0](hidden))))


class CausalDownsample(nn.Module):
    """A strided convolution."""

    def __init__(self, width: int, factors: Factors) -> None:
        super().__init__()
        self.conv = CausalConv3d(width, width, stride=factors)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,D,T,h,w] to [B,D,(T-1)/r+1,h/s,w/s] for factors (r,s,s)."""
        return cast(Tensor, self.conv(hidden))


class CausalUpsample(nn.Module):
    """Nearest-neighbour upsampling that does not repeat the first frame in time, then a convolution."""

    def __init__(self, width: int, factors: Factors) -> None:
        super().__init__()
        self.conv = CausalConv3d(width, width)
        self.factor = tuple(float(value) for value in factors)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden [B,D,T,h,w] to [B,D,r*(T-1)+1,s*h,s*w] for factors (r,s,s)."""
        # Repeat every frame, then drop the surplus copies of the first: correct for T = 1 as well, without a branch.
        repeated = functional.interpolate(hidden, scale_factor=self.factor, mode="nearest")
        return cast(Tensor, self.conv(repeated[:, :, int(self.factor[0]) - 1 :]))


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then downsampling on some levels."""

    def __init__(self, entering: int, leaving: int, config: VaeConfig, factors: Factors | None) -> None:
        super().__init__()
        self.resnets = _residuals(entering, leaving, config.layers_per_block, config.norm_num_groups)
        self.downsamplers = nn.ModuleList([CausalDownsample(leaving, factors)] if factors else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,D,T,h,w] to [B,D',T',h',w']."""
        for layer in (*self.resnets, *self.downsamplers):
            hidden = layer(hidden)
        return hidden


class UpBlock(nn.Module):
    """One level of the decoder: one residual block more than in the encoder, then upsampling on some levels."""

    def __init__(self, entering: int, leaving: int, config: VaeConfig, factors: Factors | None) -> None:
        super().__init__()
        self.resnets = _residuals(entering, leaving, config.layers_per_block + 1, config.norm_num_groups)
        self.upsamplers = nn.ModuleList([CausalUpsample(leaving, factors)] if factors else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B,D,T,h,w] to [B,D',T',h',w']."""
        for layer in (*self.resnets, *self.upsamplers):
            hidden = layer(hidden)
        return hidden


class Encoder(nn.Module):
    """Everything under the released name `encoder`: pixels in, moments out."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(entering, leaving, config, factors) for entering, leaving, factors in _levels(widths)
        )
        self.mid_block = MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B,3,F,H,W] to [B,2C,(F-1)/4+1,H/8,W/8]."""
        hidden = self.conv_in(pixels)
        for block in self.down_blocks:
            hidden = block(hidden)
        return cast(Tensor, self.conv_out(self.conv_act(self.conv_norm_out(self.mid_block(hidden)))))


class Decoder(nn.Module):
    """Everything under the released name `decoder`: latents in, pixels out."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(
            UpBlock(entering, leaving, config, factors) for entering, leaving, factors in _levels(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents [B,C,T,h,w] to pixels [B,3,4(T-1)+1,8h,8w]."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return cast(Tensor, self.conv_out(self.conv_act(self.conv_norm_out(hidden))))


def _residuals(entering: int, leaving: int, count: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(leaving if i else entering, leaving, groups) for i in range(count))


def _levels(widths: tuple[int, ...]) -> Iterator[tuple[int, int, Factors | None]]:
    """Input and output width of each level, and its size factors, None if it keeps the size."""
    for level, width in enumerate(widths):
        space, time = level < SPATIAL_LEVELS, len(widths) - 1 - TEMPORAL_LEVELS <= level < len(widths) - 1
        factors = (1 + time, 1 + space, 1 + space) if space or time else None
        yield widths[max(level - 1, 0)], width, factors
