"""Sizes of the VINO transformer, read from the released `transformer/config.json`; knows no tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vino_rt.config import take_fields
from vino_rt.errors import ModelError

MAX_BLOCKS = 1000
"""Most blocks of one kind: stops a damaged config from building blocks without end."""
KINDS: Mapping[Any, type | tuple[type, ...]] = {int: int, float: (int, float)}
"""Types that a JSON number may have for a field of the given type."""


def _legal(value: Any, kind: type | tuple[type, ...] | None) -> bool:
    """Whether a value is a positive number of this type; kind None: any value is legal."""
    return kind is None or (isinstance(value, kind) and not isinstance(value, bool) and float(str(value)) > 0)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the MMDiT, field for field those of the released `transformer/config.json` (MODEL.md section 1)."""

    in_channels: int
    out_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    """Dual-stream blocks."""
    num_single_layers: int
    num_refiner_layers: int
    mlp_ratio: float
    patch_size: int
    patch_size_t: int
    qk_norm: str
    guidance_embeds: bool
    text_embed_dim: int
    """Width of the connector's text stream."""
    pooled_projection_dim: int
    """Input width of an embedder that the checkpoint contains but inference never uses."""
    rope_theta: float
    rope_axes_dim: tuple[int, int, int]
    """Channels of a head that t, h and w rotate; they add up to `attention_head_dim`."""
    image_condition_type: str | None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _legal(value, KINDS.get(field.type)):
                raise ModelError(f"{field.name} is {value!r}, expected a number above 0")
        for name in ("num_layers", "num_single_layers", "num_refiner_layers"):
            if (value := getattr(self, name)) > MAX_BLOCKS:
                raise ModelError(f"{name} is {value}, expected at most {MAX_BLOCKS}")
        if not isinstance(self.rope_axes_dim, tuple) or len(self.rope_axes_dim) != 3:
            raise ModelError(f"rope_axes_dim is {self.rope_axes_dim!r}, expected 3 numbers")
        if sum(self.rope_axes_dim) != self.attention_head_dim or any(d % 2 for d in self.rope_axes_dim):
            raise ModelError(
                f"rope_axes_dim {self.rope_axes_dim} must be even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        if self.qk_norm != "rms_norm" or not self.guidance_embeds or self.image_condition_type is not None:
            raise ModelError(
                f"not a VINO transformer: qk_norm={self.qk_norm!r} (need 'rms_norm'), guidance_embeds="
                f"{self.guidance_embeds} (need true), image_condition_type={self.image_condition_type!r} (need null)"
            )

    @property
    def width(self) -> int:
        """Channels D of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the feed-forward layers."""
        return int(self.width * self.mlp_ratio)

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of latents, (C, pt, ph, pw) flattened."""
        return self.in_channels * self.patch_size_t * self.patch_size * self.patch_size

    @property
    def velocity_values(self) -> int:
        """Numbers in one patch of the velocity, in the same order."""
        return self.out_channels * self.patch_size_t * self.patch_size * self.patch_size

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "transformer/config.json") -> "TransformerConfig":
        """Read the released JSON object; ModelError names missing, unknown and illegal fields."""
        given = take_fields(data, cls, where)
        try:
            return cls(**given)
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error
