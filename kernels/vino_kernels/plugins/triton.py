"""Kernels with their arguments in TensorRT's order, around the kernels of the operations; the mathematics is theirs.

Heads, channels and the number of segments are constants of a network, so that strides are compiled in.
"""

import triton
import triton.language as tl

from vino_kernels.boundary_attention.triton import forward_kernel
from vino_kernels.norm_modulate.triton import norm_modulate_kernel
from vino_kernels.qk_norm_rope.triton import _norm_rope


@triton.jit
def norm_modulate_plugin(
    x,
    shift,
    scale,
    rows,
    out,
    WIDTH: tl.constexpr,
    RMS: tl.constexpr,
    QUANTISE: tl.constexpr,
    EPS: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x, out [rows, WIDTH], shift, scale [WIDTH]."""
    norm_modulate_kernel(x, shift, scale, x, out, rows, WIDTH, RMS, QUANTISE, EPS, LIMIT, BLOCK_ROWS, BLOCK)


@triton.jit
def qk_norm_rope_plugin(
    x,
    weight,
    cos,
    sin,
    out,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """x, out [L, HEADS, C], weight [C], cos, sin float32 [L, C/2]: the rotation of a row is read, not computed."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK_PAIRS)
    turn = token * (C // 2) + pair
    row_cos = tl.load(cos + turn, mask=pair < C // 2, other=1.0)
    row_sin = tl.load(sin + turn, mask=pair < C // 2, other=0.0)
    channel = tl.arange(0, 2 * BLOCK_PAIRS)
    row_weight = tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)
    for first in range(0, HEADS, BLOCK_HEADS):
        head = first + tl.arange(0, BLOCK_HEADS)
        mask = (head[:, None] < HEADS) & (channel[None, :] < C)
        offsets = token * (HEADS * C) + head[:, None] * C + channel[None, :]
        _norm_rope(x, out, row_weight, row_cos, row_sin, offsets, mask, C, EPS, True)


@triton.jit
def boundary_attention_plugin(
    q,
    k,
    v,
    offsets,
    out,
    lse,
    HEADS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    SEGMENT_SLOTS: tl.constexpr,
    GROUP_SLOTS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """q, k, v, out [L, HEADS, C], offsets int32 [SEGMENTS + 1], lse float32 [L, HEADS]; segments are the groups."""
    row: tl.constexpr = HEADS * C
    forward_kernel(
        q, k, v, offsets, offsets, row, C, row, C, row, C, HEADS, SEGMENTS, SEGMENTS, out, lse,
        C, WIDTH, OWN, OTHER, SEGMENT_SLOTS, GROUP_SLOTS, WIDEN,
    )  # fmt: skip
