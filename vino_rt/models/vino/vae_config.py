"""Sizes of the video autoencoder, read from the released `vae/config.json`; knows no layers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vino_rt.config import take_fields
from vino_rt.errors import ModelError

MAX_TILE_LATENTS = 5
"""Latent frames in the longest tile of the temporal rule (MODEL.md section 5); exported graphs serve 1 to this many."""
SPATIAL_LEVELS, TEMPORAL_LEVELS = 3, 2
"""Levels that change height and width, counted from the finest, and frames, just before the coarsest (ratios 8, 4)."""
DOWN_BLOCK, UP_BLOCK = "HunyuanVideoDownBlock3D", "HunyuanVideoUpBlock3D"
ACTIVATIONS = ("silu", "swish")
"""Two names of one function."""


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
    """One name for each encoder level, all of them `DOWN_BLOCK`."""
    up_block_types: tuple[str, ...]
    """One name for each decoder level, all of them `UP_BLOCK`."""
    block_out_channels: tuple[int, ...]
    """Width of each level, finest first."""
    layers_per_block: int
    """Residual blocks in an encoder level; a decoder level has one more."""
    act_fn: str
    """Activation inside the residual blocks."""
    norm_num_groups: int
    """Groups of every GroupNorm; divides every width."""
    scaling_factor: float
    """The generator works on the autoencoder's latents times this."""
    spatial_compression_ratio: int
    """Pixels per latent along height and width."""
    temporal_compression_ratio: int
    """Frames per latent frame; the first latent frame stands for one frame."""
    mid_block_add_attention: bool
    """Whether the middle block has attention."""

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
        if {*self.down_block_types} - {DOWN_BLOCK} or {*self.up_block_types} - {UP_BLOCK}:
            raise ModelError(
                f"vae: blocks are {self.down_block_types} and {self.up_block_types}; every one must be {DOWN_BLOCK!r} "
                f"and {UP_BLOCK!r}"
            )
        if self.act_fn not in ACTIVATIONS:
            raise ModelError(f"vae: act_fn is {self.act_fn!r}, expected one of {', '.join(ACTIVATIONS)}")
        ratios = (self.spatial_compression_ratio, self.temporal_compression_ratio)
        if ratios != (8, 4):
            raise ModelError(f"vae: spatial and temporal compression ratio must be (8, 4), got {ratios}")

    def decode_work(self, frames: int, height: int, width: int, itemsize: int = 4) -> int:
        """Bytes that decoding one tile of [frames, height, width] latents stays under, eager on the CPU.

        itemsize: bytes of a value; scores are float32 in every precision.

        At each level eight tensors of its widest layer are alive: input of level and block, activation, padded copy,
        output, the blocked copies that oneDNN makes of the last two, and one to spare. In the middle block four sets of
        T*N*N scores are alive beside the tokens. Weights are not included.
        """
        levels, entering = len(self.block_out_channels), self.block_out_channels[-1]
        scores = 4 * 4 * frames * (height * width) ** 2
        peak = scores + itemsize * 8 * entering * frames * height * width
        for level, channels in enumerate(reversed(self.block_out_channels)):
            rows = (frames + 2) * (height + 2) * (width + 2)
            peak = max(peak, itemsize * 8 * max(entering, channels) * rows)
            if level < SPATIAL_LEVELS:
                height, width = 2 * height, 2 * width
            if levels - 1 - TEMPORAL_LEVELS <= level < levels - 1:
                frames = 2 * frames - 1
            entering = channels
        return peak

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "vae/config.json") -> "VaeConfig":
        """Read the released JSON object; ModelError names missing and unknown fields and values of another type."""
        given = take_fields(data, cls, where)
        return cls(**{field.name: _typed(field.name, field.type, given[field.name], where) for field in fields(cls)})


def _typed(name: str, kind: object, value: object, where: str) -> Any:
    """`value` if it fits a field of type `kind`, a whole number converted where a float is needed; else ModelError."""
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
