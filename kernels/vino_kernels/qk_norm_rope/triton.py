"""The Triton kernel of `qk_norm_rope`: one program for all heads of one token.

The rotation of a token is computed once, in registers, and shared by its heads and by q and k. Sines and cosines are
series of our own: both come from one reduction of the angle, and need no stack, which the library's functions take.
Angles are float64 up to that reduction, so that far positions lose nothing; it is a few operations per token and pair.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.grid import grid
from vino_kernels.launching import check_dtypes
from vino_kernels.qk_norm_rope.configs import GRID, choose, constants


@triton.jit
def _frequency(pair, T, H, W, T_STEP, H_STEP, W_STEP):
    """theta ** -(2 i / size) for channel pair i of its axis, as 2 ** -(i step); float64, good to 1e-8."""
    index = tl.where(pair < T, pair, tl.where(pair < T + H, pair - T, pair - T - H))
    index = tl.where(pair < T + H + W, index, 0).to(tl.float64)
    power = tl.where(pair < T, index * T_STEP, tl.where(pair < T + H, index * H_STEP, index * W_STEP))
    whole = tl.floor(power + 0.5)
    x = (whole - power) * 0.6931471805599453
    part = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040)))
    part = 1 + x * (1 + x * (1 / 2 + x * (1 / 6 + x * part)))
    return part * ((127 - whole.to(tl.int32)) << 23).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _cos_sin(angle):
    """Float32 cosine and sine of float64 angles: quarter turns taken off, then the series up to an eighth turn."""
    turns = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = (angle - turns * 1.5707963267948966).to(tl.float32)
    square = x * x
    sin = 1 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    sin = x * sin
    cos = 1 / 24 + square * (-1 / 720 + square * (1 / 40320 + square * (-1 / 3628800)))
    cos = 1 + square * (-1 / 2 + square * cos)
    quarter = turns.to(tl.int32)
    swap = (quarter & 1) == 1
    turned_cos = tl.where(swap, sin, cos)
    turned_sin = tl.where(swap, cos, sin)
    turned_cos = tl.where(((quarter + 1) & 2) == 2, -turned_cos, turned_cos)
    turned_sin = tl.where((quarter & 2) == 2, -turned_sin, turned_sin)
    return turned_cos, turned_sin


@triton.jit
def _norm_rope(
    x_ptr, out_ptr, weight, cos, sin, offsets, mask, C: tl.constexpr, EPS: tl.constexpr, ROUND: tl.constexpr
):
    """A tile [heads, 2 * pairs] of q or k; ROUND where the product with the weight is rounded to x's dtype."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) * (1.0 / C) + EPS)
    scaled = (wide * scale[:, None]).to(x.dtype).to(tl.float32) * weight[None, :]
    if ROUND:
        scaled = scaled.to(x.dtype).to(tl.float32)
    even, odd = tl.split(tl.reshape(scaled, (scaled.shape[0], scaled.shape[1] // 2, 2)))
    turned = tl.join(even * cos[None, :] - odd * sin[None, :], even * sin[None, :] + odd * cos[None, :])
    tl.store(out_ptr + offsets, tl.reshape(turned, scaled.shape).to(x.dtype), mask=mask)


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
    """Token `program_id(0)`. T, H, W: channel pairs of each axis; steps: powers of two lost from pair to pair."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK_PAIRS)
    t = tl.load(positions_ptr + token * 3)
    h = tl.load(positions_ptr + token * 3 + 1)
    w = tl.load(positions_ptr + token * 3 + 2)
    position = tl.where(pair < T, t, tl.where(pair < T + H, h, w)).to(tl.float64)
    cos, sin = _cos_sin(position * _frequency(pair, T, H, W, T_STEP, H_STEP, W_STEP))
    channel = tl.arange(0, 2 * BLOCK_PAIRS)
    q_weight = tl.load(q_weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    for first in range(0, HEADS, BLOCK_HEADS):
        head = first + tl.arange(0, BLOCK_HEADS)
        mask = (head[:, None] < HEADS) & (channel[None, :] < C)
        offsets = token * (HEADS * C) + head[:, None] * C + channel[None, :]
        q_round: tl.constexpr = q_ptr.dtype.element_ty == q_weight_ptr.dtype.element_ty
        k_round: tl.constexpr = k_ptr.dtype.element_ty == k_weight_ptr.dtype.element_ty
        _norm_rope(q_ptr, q_out_ptr, q_weight, cos, sin, offsets, mask, C, EPS, q_round)
        _norm_rope(k_ptr, k_out_ptr, k_weight, cos, sin, offsets, mask, C, EPS, k_round)


def launch(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, positions: Tensor, axes: Sequence[int], theta: float
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments as of `qk_norm_rope`."""
    check_dtypes("qk_norm_rope", q=q, k=k, q_weight=q_weight, k_weight=k_weight)
    q, k, positions = q.contiguous(), k.contiguous(), positions.contiguous()
    q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    rows, heads, channels = q.shape
    torch.library.wrap_triton(qk_norm_rope_kernel)[grid(GRID, {"rows": rows})](
        q,
        k,
        q_weight,
        k_weight,
        positions,
        q_out,
        k_out,
        **constants(heads, channels, axes, theta),
        num_warps=choose(heads, channels).warps,
    )
    return q_out, k_out
