"""The plugins by name: the kernel of each, what it is compiled with and how it is launched, from the tensors' sizes.

Launches follow the same tables and grid rules as everywhere else (`configs.py` of each operation).
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
ROWS_OF_TACTIC = {1: attention.SHORT - 1, 2: attention.SHORT}
"""Attention's tactics: a number of rows in each class of length that has tiles of its own; TensorRT times both."""


@dataclass(frozen=True)
class Tensor:
    """One input of a plugin: its element type by PyTorch's name, and its sizes, None where they are known later."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def pointer(self) -> str:
        """The type of the kernel's argument."""
        return f"*{SHORT_NAMES.get(self.dtype, 'i32')}"


def norm_modulate(arch: int, tactic: int, x: Tensor, shift: Tensor, scale: Tensor) -> Variant:
    """Of x [rows, D], shift and scale [D] to a result as x; `rows` is a number of the launch."""
    width = _size("NormModulate", x, 1)
    arguments = (*_pointers(x=x, shift=shift, scale=scale), Argument("rows", "i32"), *_pointers(out=x))
    constants, warps = norm.constants(width, rms=False, quantise=False), norm.choose(width).warps
    return _variant("norm_modulate", arch, tactic, arguments, constants, norm.GRID, warps)


def qk_norm_rope(arch: int, tactic: int, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Variant:
    """Of x [rows, H, C], weight [C], cos and sin float32 [rows, C/2] to a result as x."""
    heads, channels = _size("QkNormRope", x, 1), _size("QkNormRope", x, 2)
    if weight.dtype != x.dtype or {cos.dtype, sin.dtype} != {"float32"}:
        given = f"{x.dtype}, {weight.dtype}, {cos.dtype} and {sin.dtype}"
        raise ValueError(
            f"QkNormRope: x, weight, cos and sin are {given}; x and weight must be alike, the rest float32"
        )
    arguments = (*_pointers(x=x, weight=weight, cos=cos, sin=sin), *_pointers(out=x))
    config = rope.choose(heads, channels)
    pairs = 1 << max(channels // 2 - 1, 0).bit_length()
    constants = {"HEADS": heads, "C": channels, "EPS": EPS, "BLOCK_HEADS": config.heads, "BLOCK_PAIRS": pairs}
    return _variant("qk_norm_rope", arch, tactic, arguments, constants, rope.GRID, config.warps)


def boundary_attention(arch: int, tactic: int, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Variant:
    """Of q, k and v [rows, H, C] and int32 offsets [S+1] to a result as q, and float32 [rows, H]."""
    name = "BoundaryAttention"
    heads, channels, cuts = _size(name, q, 1), _size(name, q, 2), _size(name, offsets, 0)
    # The tiles that every architecture has: wider ones take more shared memory than a plugin may have (`ptx.py`).
    tile = attention.tiles(channels, getattr(torch, q.dtype), ROWS_OF_TACTIC[tactic]).forward
    lse = Tensor("float32", q.shape[:2])
    arguments = _pointers(q=q, k=k, v=v, offsets=offsets, out=q, lse=lse)
    constants = {"HEADS": heads, "SEGMENTS": cuts - 1, **attention.constants(channels, tile, (cuts, cuts))}
    variant = _variant("boundary_attention", arch, tactic, arguments, constants, attention.GRID, tile.warps)
    return replace(variant, stages=tile.stages)


@dataclass(frozen=True)
class Plugin:
    """A node of our ONNX domain that one of our kernels computes."""

    inputs: tuple[str, ...]
    outputs: int
    variant: Callable[..., Variant]
    """From an architecture, a tactic and the inputs in order."""
    tactics: tuple[int, ...] = (0,)
    """Other ways to the same result; 0 stands for none."""


PLUGINS: Mapping[str, Plugin] = {
    "NormModulate": Plugin(("x", "shift", "scale"), 1, norm_modulate),
    "QkNormRope": Plugin(("x", "weight", "cos", "sin"), 1, qk_norm_rope),
    "BoundaryAttention": Plugin(("q", "k", "v", "offsets"), 2, boundary_attention, tuple(ROWS_OF_TACTIC)),
}


def launch_names(variant: Variant, rows: Any) -> dict[str, Any]:
    """What the grid's rules and the numbers of a launch are called, with `rows` a number or an expression of one."""
    sizes = {"rows": rows, "heads": variant.constants.get("HEADS"), "n_groups": variant.constants.get("SEGMENTS")}
    return {**variant.constants, **sizes}


def _size(plugin: str, tensor: Tensor, axis: int) -> int:
    size = tensor.shape[axis] if axis < len(tensor.shape) else None
    if size is None or size < 0:
        raise ValueError(f"{plugin}: a tensor of shape {tensor.shape}: axis {axis} must be known when it is built")
    return size


def _pointers(**tensors: Tensor) -> tuple[Argument, ...]:
    """Tensors of an engine begin at multiples of 256 bytes; that of int32 is read number by number."""
    return tuple(Argument(name, x.pointer, aligned=x.pointer != "*i32") for name, x in tensors.items())


def _variant(
    operation: str, arch: int, tactic: int, arguments: tuple[Argument, ...], constants: Mapping[str, Constant],
    grid: tuple[Rule, ...], warps: int,
) -> Variant:  # fmt: skip
    name = f"{operation}-plugin-{tactic}"
    return Variant(arch, name, "plugins", f"{operation}_plugin", arguments, constants, grid, warps)
