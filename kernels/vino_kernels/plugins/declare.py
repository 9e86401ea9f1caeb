"""The plugins by name: kernel, compile-time constants and launch parameters of each, from the tensors' sizes.

Launches follow the same tables and grid rules as everywhere else (`configs.py` of each operation), except for the tiles
of attention: a plugin may have less shared memory than other launches (`ptx.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vino_kernels.ahead.shapes import SHORT_NAMES
from vino_kernels.ahead.variant import Argument, Constant, Variant
from vino_kernels.boundary_attention import configs as attention
from vino_kernels.grid import Rule
from vino_kernels.norm_modulate import configs as norm
from vino_kernels.qk_norm_rope import configs as rope
from vino_kernels.qk_norm_rope.ref import EPS

NAMESPACE = "vino"
TILES: dict[tuple[int, int], tuple[attention.Tile, ...]] = {
    (64, 2): (attention.Tile(64, 64, 4, 3), attention.Tile(128, 64, 8, 3)),
    (128, 2): (attention.Tile(64, 32, 8, 2), attention.Tile(128, 32, 8, 1)),
    (256, 2): (attention.Tile(32, 16, 8, 2),),
    (64, 4): (attention.Tile(32, 16, 8, 2),),
    (128, 4): (attention.Tile(16, 16, 8, 2),),
    (256, 4): (attention.Tile(16, 16, 8, 2),),
}
"""Attention's tiles by padded head size and bytes per element, one per tactic; TensorRT times them all. With the stages
that `ptx.py` leaves them, they fit on every architecture that is not in `OWN_TILES`. None has been measured.
"""
OWN_TILES: dict[tuple[int, int, int], tuple[attention.Tile, ...]] = {
    (9, 128, 2): (attention.Tile(64, 32, 4, 2), attention.Tile(128, 32, 8, 1)),
    (10, 128, 2): (attention.Tile(64, 32, 4, 1), attention.Tile(128, 16, 8, 1)),
    (11, 128, 2): (attention.Tile(64, 32, 4, 1), attention.Tile(128, 16, 8, 1)),
}
"""Tiles by major compute capability that take precedence: from 9 on, four warps multiply together, and on 10 and 11
Triton reserves a few more bytes of shared memory.
"""


@dataclass(frozen=True)
class Tensor:
    """One input of a plugin: its element type by PyTorch's name, and its sizes, None where not known yet."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def pointer(self) -> str:
        """Triton's type of the kernel's argument."""
        return f"*{SHORT_NAMES.get(self.dtype, 'i32')}"


def norm_modulate(arch: int, tactic: int, x: Tensor, shift: Tensor, scale: Tensor) -> Variant:
    """Variant for x [rows, D], shift and scale [D] -> a result like x; `rows` is passed as a number."""
    width = _size("NormModulate", x, 1)
    arguments = (*_pointers(x=x, shift=shift, scale=scale), Argument("rows", "i32"), *_pointers(out=x))
    config = norm.choose(width, dtype=getattr(torch, x.dtype), capability=divmod(arch, 10))
    constants = norm.constants(width, rms=False, quantise=False, config=config)
    return _variant("norm_modulate", arch, tactic, arguments, constants, norm.GRID, config.warps)


def qk_norm_rope(arch: int, tactic: int, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Variant:
    """Variant for x [rows, H, C], weight [C], cos and sin float32 [rows, C/2] -> a result like x."""
    heads, channels = _size("QkNormRope", x, 1), _size("QkNormRope", x, 2)
    if weight.dtype != x.dtype or {cos.dtype, sin.dtype} != {"float32"}:
        given = f"{x.dtype}, {weight.dtype}, {cos.dtype} and {sin.dtype}"
        raise ValueError(
            f"QkNormRope: x, weight, cos and sin are {given}; x and weight must be alike, the rest float32"
        )
    arguments = (*_pointers(x=x, weight=weight, cos=cos, sin=sin), *_pointers(out=x))
    config = rope.choose(heads, channels, None, getattr(torch, x.dtype), divmod(arch, 10))
    pairs = 1 << max(channels // 2 - 1, 0).bit_length()
    constants = {"HEADS": heads, "C": channels, "EPS": EPS, "BLOCK_HEADS": config.heads, "BLOCK_PAIRS": pairs}
    return _variant("qk_norm_rope", arch, tactic, arguments, constants, rope.GRID, config.warps)


def boundary_attention(arch: int, tactic: int, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Variant:
    """Variant for q, k, v [rows, H, C] and int32 offsets [S+1] -> a result like q, and lse float32 [rows, H].

    `rows` is passed as a number; the kernel stays within it whatever the offsets are.
    """
    name = "BoundaryAttention"
    heads, channels, cuts = _size(name, q, 1), _size(name, q, 2), _size(name, offsets, 0)
    tile = _tiles(arch, q)[tactic - 1]
    lse = Tensor("float32", q.shape[:2])
    inputs, outputs = _pointers(q=q, k=k, v=v, offsets=offsets), _pointers(out=q, lse=lse)
    shared = attention.constants(channels, tile, (cuts, cuts))
    del shared["GROUP_SLOTS"]
    constants = {"HEADS": heads, "SEGMENTS": cuts - 1, **shared}
    arguments = (*inputs, Argument("rows", "i32"), *outputs)
    variant = _variant("boundary_attention", arch, tactic, arguments, constants, attention.GRID, tile.warps)
    return replace(variant, stages=tile.stages)


def attention_tactics(arch: int, q: Tensor) -> tuple[int, ...]:
    """The tactics of `boundary_attention` for queries [rows, H, C], one per tile."""
    return tuple(range(1, len(_tiles(arch, q)) + 1))


def _tiles(arch: int, q: Tensor) -> tuple[attention.Tile, ...]:
    channels, size = _size("BoundaryAttention", q, 2), getattr(torch, q.dtype).itemsize
    padded = next((known for known, _ in TILES if channels <= known), None)
    if padded is None:
        raise ValueError(
            f"BoundaryAttention: {channels} channels of a head, at most {attention.HEAD_LIMIT} are possible"
        )
    return OWN_TILES.get((arch // 10, padded, size)) or TILES[padded, size]


@dataclass(frozen=True)
class Plugin:
    """How a node of our ONNX domain is computed by one of our kernels."""

    inputs: tuple[str, ...]
    outputs: int
    variant: Callable[..., Variant]
    """Makes the variant from an architecture, a tactic and the inputs in order."""
    tactics: tuple[int, ...] = (0,)
    """Alternative kernels for the same result; (0,): no choice. For attention see also `attention_tactics`."""


PLUGINS: Mapping[str, Plugin] = {
    "NormModulate": Plugin(("x", "shift", "scale"), 1, norm_modulate),
    "QkNormRope": Plugin(("x", "weight", "cos", "sin"), 1, qk_norm_rope),
    "BoundaryAttention": Plugin(("q", "k", "v", "offsets"), 2, boundary_attention, (1, 2)),
}


def launch_names(variant: Variant, rows: Any) -> dict[str, Any]:
    """Values of the names in the grid's rules and of the launch's numbers; rows: a number or a symbolic expression."""
    sizes = {"rows": rows, "heads": variant.constants.get("HEADS"), "n_groups": variant.constants.get("SEGMENTS")}
    return {**variant.constants, **sizes}


def _size(plugin: str, tensor: Tensor, axis: int) -> int:
    size = tensor.shape[axis] if axis < len(tensor.shape) else None
    if size is None or size < 0:
        raise ValueError(f"{plugin}: a tensor of shape {tensor.shape}: axis {axis} must be known when it is built")
    return size


def _pointers(**tensors: Tensor) -> tuple[Argument, ...]:
    """Pointer arguments; TensorRT aligns tensors to 256 bytes, int32 tensors are read element by element."""
    return tuple(Argument(name, x.pointer, aligned=x.pointer != "*i32") for name, x in tensors.items())


def _variant(
    operation: str, arch: int, tactic: int, arguments: tuple[Argument, ...], constants: Mapping[str, Constant],
    grid: tuple[Rule, ...], warps: int,
) -> Variant:  # fmt: skip
    name = f"{operation}-plugin-{tactic}"
    return Variant(arch, name, "plugins", f"{operation}_plugin", arguments, constants, grid, warps)
