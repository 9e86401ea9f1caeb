"""The Triton kernel of `qk_norm_rope`: one program for all heads of one token.

The rotation of a token is computed once, in registers, and shared by its heads and by q and k. Angles are integers that
count 2**-32 turns: whole turns fall off the product with the position, so far positions lose nothing, and nothing is
computed in float64, which many GPUs do 64 times slower than float32. Sines and cosines are series of our own: both come
from one reduction of the angle, and need no stack, which the library's functions take.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.grid import grid
from vino_kernels.launching import capability_of, check_dtypes
from vino_kernels.qk_norm_rope.configs import BINARY_DIGITS, GRID, Config, choose, constants

DIGITS = tl.constexpr(BINARY_DIGITS)
BELOW_32 = tl.constexpr(BINARY_DIGITS - 32)
RADIANS = tl.constexpr(round(math.log2(2 * math.pi) * 2**BINARY_DIGITS))
"""Powers of two from one turn down to one radian, as a fixed-point number."""
ANGLE_UNIT = tl.constexpr(2 * math.pi / 2**32)
"""Radians in 2**-32 turns."""


@triton.jit
def _power(pair, T, H, W, T_STEP, H_STEP, W_STEP):
    """-log2 of the turns that a pair makes from one position to the next, a fixed-point number in int64.

    Pair i of an axis makes theta ** -(2 i / size) radians; a step is the power of two between two pairs of an axis.
    """
    index = tl.where(pair < T, pair, tl.where(pair < T + H, pair - T, pair - T - H))
    index = tl.where(pair < T + H + W, index, 0).to(tl.int64)
    return tl.where(pair < T, index * T_STEP, tl.where(pair < T + H, index * H_STEP, index * W_STEP)) + RADIANS


@triton.jit
def _angle(position, power):
    """position * 2**-power turns, int32 in units of 2**-32 turns.

    2**-fraction is a Taylor series with 31 binary digits, up to one half; above, the square root of one half is taken
    off first. An angle is wrong by at most 2**-29 of itself, where float32 rounds by up to 2**-24.
    """
    fraction = (power >> BELOW_32).to(tl.uint32)
    half = fraction & 0x7FFFFFFF
    part = 32755 - tl.umulhi(half, 2838)
    part = 330788 - tl.umulhi(half, part)
    part = 2863360 - tl.umulhi(half, part)
    part = 20654775 - tl.umulhi(half, part)
    part = 119194166 - tl.umulhi(half, part)
    part = 515882496 - tl.umulhi(half, part)
    part = 1488522236 - tl.umulhi(half, part)
    part = 2147483648 - tl.umulhi(half, part)
    part = tl.where(fraction == half, part, tl.umulhi(part, 3037000500))
    # 31 digits of the series, less the 32 of the result.
    shift = (power >> DIGITS) - 1
    return (position.to(tl.int64) * part.to(tl.int64) >> shift).to(tl.int32)


@triton.jit
def _cos_sin(angle):
    """Float32 cosine and sine of `_angle`: whole quarter turns taken off, then series up to an eighth of a turn."""
    quarter = (angle + (1 << 29)) >> 30
    x = (angle - (quarter << 30)).to(tl.float32) * ANGLE_UNIT
    square = x * x
    sin = 1 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    sin = x * sin
    cos = 1 / 24 + square * (-1 / 720 + square * (1 / 40320 + square * (-1 / 3628800)))
    cos = 1 + square * (-1 / 2 + square * cos)
    swap = (quarter & 1) == 1
    turned_cos = tl.where(swap, sin, cos)
    turned_sin = tl.where(swap, cos, sin)
    turned_cos = tl.where(((quarter + 1) & 2) == 2, -turned_cos, turned_cos)
    turned_sin = tl.where((quarter & 2) == 2, -turned_sin, turned_sin)
    return turned_cos, turned_sin


@triton.jit
def _turned(x, weight, cos, sin, C: tl.constexpr, EPS: tl.constexpr, ROUND: tl.constexpr):
    """The result for a tile [heads, 2 * pairs]; ROUND where the product with the weight is rounded to x's dtype."""
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) * (1.0 / C) + EPS)
    scaled = (wide * scale[:, None]).to(x.dtype).to(tl.float32) * weight
    if ROUND:
        scaled = scaled.to(x.dtype).to(tl.float32)
    even, odd = tl.split(tl.reshape(scaled, (scaled.shape[0], scaled.shape[1] // 2, 2)))
    turned = tl.join(even * cos[None, :] - odd * sin[None, :], even * sin[None, :] + odd * cos[None, :])
    return tl.reshape(turned, scaled.shape).to(x.dtype)


@triton.jit
def _norm_rope(
    x_ptr, out_ptr, weight, cos, sin, offsets, mask, C: tl.constexpr, EPS: tl.constexpr, ROUND: tl.constexpr
):
    """Read a tile, write the result, with a weight for every channel; what TensorRT's plugin is made of."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    tl.store(out_ptr + offsets, _turned(x, weight[None, :], cos, sin, C, EPS, ROUND), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def qk_norm_rope_kernel(
    q_ptr,
    k_ptr,
    q_weight_ptr,
    k_weight_ptr,
    positions_ptr,
    q_out_ptr,
    k_out_ptr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    T_STEP: tl.constexpr,
    H_STEP: tl.constexpr,
    W_STEP: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """Token `program_id(0)`. T, H, W: channel pairs of each axis; steps: fixed-point powers of two from pair to pair.

    Every load is issued ahead of the stores before it: an output may lie where an input does, for all the compiler
    knows, so it moves no load past a store, and memory would wait for arithmetic.
    """
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, 2 * BLOCK_PAIRS)
    head = tl.arange(0, BLOCK_HEADS)
    offsets = token * (HEADS * C) + head[:, None] * C + channel[None, :]
    mask = (head[:, None] < HEADS) & (channel[None, :] < C)
    q = tl.load(q_ptr + offsets, mask=mask, other=0.0)
    k = tl.load(k_ptr + offsets, mask=mask, other=0.0)
    # The same row for every head: each thread reads what it needs itself, instead of waiting for others to share it.
    weights = tl.zeros((BLOCK_HEADS, 1), tl.int32) + channel[None, :]
    q_weight = tl.load(q_weight_ptr + weights, mask=weights < C, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + weights, mask=weights < C, other=0.0).to(tl.float32)
    t = tl.load(positions_ptr + token * 3)
    h = tl.load(positions_ptr + token * 3 + 1)
    w = tl.load(positions_ptr + token * 3 + 2)
    pair = tl.arange(0, BLOCK_PAIRS)
    position = tl.where(pair < T, t, tl.where(pair < T + H, h, w))
    cos, sin = _cos_sin(_angle(position, _power(pair, T, H, W, T_STEP, H_STEP, W_STEP)))
    q_round: tl.constexpr = q_ptr.dtype.element_ty == q_weight_ptr.dtype.element_ty
    k_round: tl.constexpr = k_ptr.dtype.element_ty == k_weight_ptr.dtype.element_ty
    for first in range(0, HEADS, BLOCK_HEADS):
        ahead = offsets + BLOCK_HEADS * C
        more = (first + BLOCK_HEADS + head[:, None] < HEADS) & (channel[None, :] < C)
        next_q = tl.load(q_ptr + ahead, mask=more, other=0.0)
        next_k = tl.load(k_ptr + ahead, mask=more, other=0.0)
        tl.store(q_out_ptr + offsets, _turned(q, q_weight, cos, sin, C, EPS, q_round), mask=mask)
        tl.store(k_out_ptr + offsets, _turned(k, k_weight, cos, sin, C, EPS, k_round), mask=mask)
        q, k, offsets, mask = next_q, next_k, ahead, more


def launch(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    positions: Tensor,
    axes: Sequence[int],
    theta: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments as of `qk_norm_rope`. config: None for what `configs.choose` finds."""
    check_dtypes("qk_norm_rope", q=q, k=k, q_weight=q_weight, k_weight=k_weight)
    q, k, positions = q.contiguous(), k.contiguous(), positions.contiguous()
    q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    rows, heads, channels = q.shape
    config = config or choose(heads, channels, rows, q.dtype, capability_of(q))
    torch.library.wrap_triton(qk_norm_rope_kernel)[grid(GRID, {"rows": rows})](
        q,
        k,
        q_weight,
        k_weight,
        positions,
        q_out,
        k_out,
        **constants(heads, channels, axes, theta, config),
        num_warps=config.warps,
    )
    return q_out, k_out
