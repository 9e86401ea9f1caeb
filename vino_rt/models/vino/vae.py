"""The video autoencoder in plain PyTorch, cut into the two engines of the runtime: one tile in, one tile out.

The layers and their parameter names are those of diffusers' `AutoencoderKLHunyuanVideo`; two of its modules are
replaced here: the middle block, whose dense (T*h*w)^2 mask does not fit in memory at real sizes, and the upsampler,
which branches on the number of frames in Python and so cannot become one graph for all of them.

It does not know tiling, scaling, sampling of the posterior, files or backends.

Shapes: B batch (1 in engines), F pixel frames, H W pixels, C latent channels, T h w frames, height and width at the
level in question, N = h*w, D channels at that level.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vino_rt.errors import ModelError
from vino_rt.models.vino.config import take_fields

if TYPE_CHECKING:
    from torch.export import Dim

MAX_TILE_LATENTS = 5
"""Latent frames in the longest tile of the temporal rule (spec section 5); an exported graph serves 1 to this many."""


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder, under the names of the released `vae/config.json`."""

    in_channels: int
    """Channels of a pixel going in."""
    out_channels: int
    """Channels of a pixel coming out."""
    latent_channels: int
    """C, channels of a latent."""
    down_block_types: tuple[str, ...]
    """One name for each encoder level; the library knows a single type."""
    up_block_types: tuple[str, ...]
    """One name for each decoder level."""
    block_out_channels: tuple[int, ...]
    """Width of each level, finest first."""
    layers_per_block: int
    """Residual blocks in an encoder level; a decoder level has one more."""
    act_fn: str
    """Activation inside the residual blocks."""
    norm_num_groups: int
    """Groups of every GroupNorm; divides every width."""
    scaling_factor: float
    """A latent of the generator is a latent of the autoencoder times this."""
    spatial_compression_ratio: int
    """Pixels in a latent along height and width."""
    temporal_compression_ratio: int
    """Pixel frames in a latent frame; the first latent frame holds one."""
    mid_block_add_attention: bool
    """Whether the middle block attends."""

    def __post_init__(self) -> None:
        counts = (
            self.in_channels,
            self.out_channels,
            self.latent_channels,
            self.layers_per_block,
            self.norm_num_groups,
        )
        widths = self.block_out_channels
        if not widths or min(*counts, *widths) < 1 or not self.scaling_factor > 0:
            raise ModelError(f"vae: channels, layers, groups and scaling_factor must be above 0, got {self}")
        if any(width % self.norm_num_groups for width in widths):
            raise ModelError(
                f"vae: block_out_channels {widths} must be multiples of norm_num_groups, {self.norm_num_groups}"
            )
        if not len(self.down_block_types) == len(self.up_block_types) == len(widths):
            raise ModelError(
                f"vae: down_block_types and up_block_types must have {len(widths)} entries, one for a level"
            )
        ratios = (self.spatial_compression_ratio, self.temporal_compression_ratio)
        if ratios != (8, 4):
            raise ModelError(f"vae: spatial and temporal compression ratio must be (8, 4), got {ratios}")

    def decode_work(self, frames: int, height: int, width: int) -> int:
        """Bytes of float32 that decoding one tile of [frames, height, width] latents stays under, eager on the CPU.

        At each level eight tensors of its widest layer live at once: input of level and block, activation, padded copy,
        output, the blocked copies oneDNN makes of the last two, and one to spare. In the middle block four sets of
        T*N*N scores do, beside the tokens. Weights do not count.
        """
        levels, entering = len(self.block_out_channels), self.block_out_channels[-1]
        peak = 4 * frames * (height * width) ** 2 + 8 * entering * frames * height * width
        for level, channels in enumerate(reversed(self.block_out_channels)):
            peak = max(peak, 8 * max(entering, channels) * (frames + 2) * (height + 2) * (width + 2))
            if level < 3:
                height, width = 2 * height, 2 * width
            if levels - 3 <= level < levels - 1:
                frames = 2 * frames - 1
            entering = channels
        return 4 * peak

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "vae/config.json") -> "VaeConfig":
        """Read the released JSON object; ModelError names missing and unknown fields and values of another type."""
        given = take_fields(data, cls, where)
        return cls(**{field.name: _typed(field.name, field.type, given[field.name], where) for field in fields(cls)})


def _typed(name: str, kind: object, value: object, where: str) -> Any:
    """`value` as it is when it fits a field of type `kind`; a whole number may stand for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if kind in (tuple[str, ...], tuple[int, ...]):
        entry = str if kind == tuple[str, ...] else int
        fits = isinstance(value, tuple) and all(type(item) is entry for item in value)
    else:
        fits = type(value) is kind
    if not fits:
        wanted = kind.__name__ if isinstance(kind, type) else kind
        raise ModelError(f"{where}: {name} is {value!r}, expected {wanted}; copy the released file")
    return value


def frame_causal_attention(query: Tensor, key: Tensor, value: Tensor, max_frames: int = MAX_TILE_LATENTS) -> Tensor:
    """Attention of one head in which frame t sees every token of frames 0..t (HunyuanVideo's middle block), unmasked.

    query, key, value: [B,T,N,D] of one floating dtype. Returns [B,T,N,D]. The sum runs over the distance between frames
    with a running softmax in float32, so that T*N*N scores live at a time, not (T*N)^2, and every step is a plain dense
    operation. An export fixes the number of distances to `max_frames`: frames beyond come out as NaN, never wrong.
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
    """Move rows [B,T,N,D] by `distance` frames to later ones, zeros in front."""
    # Pad, then cut: a slice that could be empty would tie an exported graph to the T of its example.
    return functional.pad(rows, (0, 0, 0, 0, distance, 0))[:, : rows.shape[1]] if distance else rows


class FrameCausalAttention(nn.Module):
    """The attention layer of the middle block: takes over the parameters of the library's layer, and their names."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        assert stock.heads == 1, "the middle block has one head as wide as its channels"
        self.group_norm = cast(nn.GroupNorm, stock.group_norm)
        self.to_q = cast(nn.Linear, stock.to_q)
        self.to_k = cast(nn.Linear, stock.to_k)
        self.to_v = cast(nn.Linear, stock.to_v)
        self.to_out = cast(nn.ModuleList, stock.to_out)

    def forward(self, hidden: Tensor) -> Tensor:
        """Attend in hidden [B,D,T,h,w], residual included; the same shape."""
        height, width = hidden.shape[3:]
        rows = self.group_norm(hidden).permute(0, 2, 3, 4, 1).flatten(2, 3)
        mixed: Tensor = self.to_out[0](frame_causal_attention(self.to_q(rows), self.to_k(rows), self.to_v(rows)))
        return hidden + mixed.reshape(*rows.shape[:2], height, width, -1).permute(0, 4, 1, 2, 3)


class FrameCausalMidBlock(nn.Module):
    """The middle block of encoder and decoder: residual, then attention and residual in turn."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.resnets = cast(nn.ModuleList, stock.resnets)
        layers = cast(nn.ModuleList, stock.attentions)
        self.attentions = nn.ModuleList(
            nn.Identity() if layer is None else FrameCausalAttention(layer) for layer in layers
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden [B,D,T,h,w] to the same shape."""
        hidden = self.resnets[0](hidden)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            hidden = resnet(attention(hidden))
        return hidden


class CausalUpsample(nn.Module):
    """Nearest upsampling in which the first frame is not repeated in time, then the library's convolution."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.conv = cast(nn.Module, stock.conv)
        self.factor = tuple(float(value) for value in cast(tuple[int, int, int], stock.upsample_factor))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden [B,D,T,h,w] to [B,D,r*(T-1)+1,s*h,s*w] for factors (r,s,s)."""
        # Repeating every frame and dropping the surplus of the first is right for T = 1 too, without a branch on T.
        repeated = functional.interpolate(hidden, scale_factor=self.factor, mode="nearest")
        return cast(Tensor, self.conv(repeated[:, :, int(self.factor[0]) - 1 :]))


class VaeEncoder(nn.Module):
    """Engine kind `vae_encode`; parameters `encoder.*` and `quant_conv.*` as released. Can be built on meta."""

    def __init__(self, config: VaeConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoEncoder3D

        super().__init__()
        self.config = config
        self.encoder = HunyuanVideoEncoder3D(
            in_channels=config.in_channels,
            out_channels=config.latent_channels,
            down_block_types=config.down_block_types,
            mid_block_add_attention=config.mid_block_add_attention,
            temporal_compression_ratio=config.temporal_compression_ratio,
            spatial_compression_ratio=config.spatial_compression_ratio,
            **_widths(config),
        )
        self.encoder.mid_block = FrameCausalMidBlock(cast(nn.Module, self.encoder.mid_block))
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B,3,F,H,W] in [-1,1], F = 4k+1, H and W multiples of 8, to moments [B,2C,(F-1)/4+1,H/8,W/8].

        The first C channels are the mean, the others the log variance, not clamped.
        """
        return cast(Tensor, self.quant_conv(self.encoder(pixels)))

    def dynamic_shapes(self) -> tuple[dict[int, "Dim"]]:
        """What may vary between tiles, for `torch.export` and `torch.onnx.export`; T, h, w = 1 are served as well."""
        latents, height, width = _tile_dims()
        return ({2: 4 * latents + 1, 3: 8 * height, 4: 8 * width},)


class VaeDecoder(nn.Module):
    """Engine kind `vae_decode`; parameters `post_quant_conv.*` and `decoder.*` as released. Can be built on meta."""

    def __init__(self, config: VaeConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoDecoder3D

        super().__init__()
        self.config = config
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, kernel_size=1)
        self.decoder = HunyuanVideoDecoder3D(
            in_channels=config.latent_channels,
            out_channels=config.out_channels,
            up_block_types=config.up_block_types,
            mid_block_add_attention=config.mid_block_add_attention,
            time_compression_ratio=config.temporal_compression_ratio,
            spatial_compression_ratio=config.spatial_compression_ratio,
            **_widths(config),
        )
        self.decoder.mid_block = FrameCausalMidBlock(cast(nn.Module, self.decoder.mid_block))
        for block in self.decoder.up_blocks:
            stock = cast(nn.ModuleList | None, block.upsamplers)
            block.upsamplers = None if stock is None else nn.ModuleList(CausalUpsample(layer) for layer in stock)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents [B,C,T,h,w], divided by the scaling factor, to pixels [B,3,4(T-1)+1,8h,8w], not clipped."""
        return cast(Tensor, self.decoder(self.post_quant_conv(latents)))

    def dynamic_shapes(self) -> tuple[dict[int, "Dim"]]:
        """What may vary between tiles, for `torch.export` and `torch.onnx.export`; T, h, w = 1 are served as well."""
        latents, height, width = _tile_dims()
        return ({2: latents, 3: height, 4: width},)


def _widths(config: VaeConfig) -> dict[str, Any]:
    """The arguments that encoder and decoder of the library share."""
    return {
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "act_fn": config.act_fn,
    }


def _tile_dims() -> tuple["Dim", "Dim", "Dim"]:
    """Latent frames, height and width of a tile as symbols of an export."""
    from torch.export import Dim

    return Dim("t", min=1, max=MAX_TILE_LATENTS), Dim("h", min=1, max=1024), Dim("w", min=1, max=1024)
