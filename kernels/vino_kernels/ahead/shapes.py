"""The sizes of a model that kernels depend on: heads, widths and rotary axes, and its element type."""

import json
from dataclasses import dataclass
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
SHORT_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Triton's names of element types by PyTorch's."""


@dataclass(frozen=True)
class Shapes:
    """Sizes and element type of one model's transformer."""

    heads: int
    """Attention heads."""
    channels: int
    """Channels of a head; heads times channels is the width of a row."""
    axes: tuple[int, ...]
    """Channels of a head that t, h and w rotate."""
    theta: float = 256.0
    """Base of the rope frequencies."""
    dtype: str = "bfloat16"
    """Element type of activations and weights, one of `DTYPES`."""
    segments: int = 7
    """Most segments of a packed sequence, padding included: three branches make four."""
    groups: int = 0
    """Most groups, for references that attend only to themselves; 0: no groups."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: legal are {', '.join(DTYPES)}")
        if self.heads < 1 or self.channels < 2 or self.segments < 1 or self.groups < 0:
            raise ValueError(f"{self} has a size that is too small")
        if len(self.axes) != 3 or sum(self.axes) != self.channels or any(size < 0 or size % 2 for size in self.axes):
            raise ValueError(f"axes {self.axes} must be three even numbers that add up to {self.channels} channels")

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.heads * self.channels

    @property
    def element(self) -> str:
        """Triton's name of the dtype, such as bf16."""
        return SHORT_NAMES[self.dtype]

    @property
    def cuts(self) -> tuple[int, int]:
        """Most entries of the tables of segments and of groups."""
        return self.segments + 1, (self.groups or self.segments) + 1


VINO = Shapes(heads=24, channels=128, axes=(16, 56, 56))
MINI = Shapes(heads=3, channels=64, axes=(16, 24, 24))
PRESETS = {
    "vino": (VINO,),
    "mini": (MINI, Shapes(MINI.heads, MINI.channels, MINI.axes, dtype="float32")),
}
"""The released model in bfloat16; the bundled one in bfloat16 and float32."""


def read_config(path: Path, dtype: str) -> Shapes:
    """Shapes of a transformer from its `config.json` at `path`; ValueError naming missing fields."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        heads, channels = int(config["num_attention_heads"]), int(config["attention_head_dim"])
        axes = tuple(int(size) for size in config["rope_axes_dim"])
        return Shapes(heads, channels, axes, float(config["rope_theta"]), dtype)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no transformer's config.json: {error} is missing or of another type") from error
