"""Kernels with their arguments in TensorRT's order, made of the kernels of the operations; the mathematics is theirs.

Heads, channels and the number of segments are constants of a network, so that strides are compiled in.
"""

import triton
import triton.language as tl

from vino_kernels.boundary_attention.triton import LOG2_E, attend, finish, load_rows
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
def place(offsets, rows, SEGMENTS: tl.constexpr, OWN: tl.constexpr, SLOTS: tl.constexpr):
    """The tile of this program: its first row, the range of its segment, and where the padding begins.

    As `locate` of the operation, for segments that are the groups. While TensorRT builds an engine it runs the kernel
    on tables of arbitrary numbers, so the offsets are made to ascend from 0 to at most `rows`; those of a plan stay as
    they are. Entries beyond the table repeat its last one: their segments are empty.
    """
    tile = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    given = tl.load(offsets + s, mask=(s > 0) & (s <= SEGMENTS), other=0)
    given = tl.minimum(tl.maximum(given, 0), rows)
    # Entry i is the largest up to i, from all pairs: there are too few entries for a scan to pay.
    cuts = tl.max(tl.where(s[:, None] <= s[None, :], given[:, None], 0), 0)
    segment = tl.sum(((cuts // OWN + s <= tile) & (s < SEGMENTS)).to(tl.int32), 0) - 1
    start = tl.sum(tl.where(s == segment, cuts, 0), 0)
    end = tl.sum(tl.where(s == segment + 1, cuts, 0), 0)
    first = start + (tile - start // OWN - segment) * OWN
    padding = tl.sum(tl.where(s == SEGMENTS - 1, cuts, 0), 0)
    return first, start, end, padding


@triton.jit
def boundary_attention_plugin(
    q,
    k,
    v,
    offsets,
    rows,
    out,
    lse,
    HEADS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    SEGMENT_SLOTS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """q, k, v, out [rows, HEADS, C], offsets int32 [SEGMENTS + 1], lse float32 [rows, HEADS]; see `forward_kernel`."""
    first, start, end, padding = place(offsets, rows, SEGMENTS, OWN, SEGMENT_SLOTS)
    if first >= end:
        return
    row: tl.constexpr = HEADS * C
    # Padding sees nothing, which leaves zeros.
    stop = tl.where(start >= padding, start, end)
    head = tl.program_id(1).to(tl.int64)
    k += head * C
    v += head * C
    SCALE: tl.constexpr = C**-0.5 * LOG2_E
    q_tile = load_rows(q + head * C, first, end, row, OWN, C, WIDTH, True)
    state = (
        tl.zeros([OWN, WIDTH], tl.float32), tl.zeros([OWN], tl.float32), tl.full([OWN], float("-inf"), tl.float32)
    )  # fmt: skip
    whole = start + (stop - start) // OTHER * OTHER
    for at in tl.range(start, whole, OTHER):
        k_tile = load_rows(k, at, stop, row, OTHER, C, WIDTH, False)
        v_tile = load_rows(v, at, stop, row, OTHER, C, WIDTH, False)
        state = attend(state, q_tile, k_tile, v_tile, OTHER, SCALE, OTHER, WIDEN, False)
    if whole < stop:
        k_tile = load_rows(k, whole, stop, row, OTHER, C, WIDTH, True)
        v_tile = load_rows(v, whole, stop, row, OTHER, C, WIDTH, True)
        state = attend(state, q_tile, k_tile, v_tile, stop - whole, SCALE, OTHER, WIDEN, True)
    finish(state, out, lse, first, end, HEADS, head, OWN, C, WIDTH)
