"""The reference of the kernel in plain PyTorch: norm and rotation of queries and keys, then softmax attention with both
matmuls in int8 and integer accumulation.

Quantisation is symmetric, with one scale per row and head for queries and keys, and one per segment and channel for
values. Softmax weights become 0 to 255, where 255 is the largest weight of a block of keys: with one scale per row, the
many small weights of a long row would all become zero.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vino_kernels.qk_norm_rope.ref import norm_rope

BLOCK = 64
"""Number of keys that share a scale of their softmax weights."""
LARGEST, HEAVIEST = 127, 255


class Stream(NamedTuple):
    """One stream: projections q, k, v [rows, H * C], and the weights [C] of the norms of q and k."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor
    k_weight: Tensor


def int8_joint_attention(
    streams: Sequence[Stream], cos: Tensor, sin: Tensor, offsets: Tensor, order: Tensor | None
) -> Tensor:
    """`norm_rope` of the queries and keys of all streams, then `int8_attention` over the packed sequence.

    cos, sin: float32 [L, C/2] for the rows of the concatenated streams. offsets: segments of the sequence. order: int64
    [L], the row of the concatenated streams that each row of the sequence comes from; None if the orders are equal.
    Returns [L, H * C] in the order of the streams.
    """
    lengths, channels = [len(stream.q) for stream in streams], 2 * cos.shape[1]
    heads = streams[0].q.shape[1] // channels
    cosines, sines = (torch.split(table[:, None], lengths) for table in (cos, sin))
    tables = list(zip(streams, cosines, sines, strict=True))
    q = torch.cat([norm_rope(one.q.view(-1, heads, channels), one.q_weight, c, s) for one, c, s in tables])
    k = torch.cat([norm_rope(one.k.view(-1, heads, channels), one.k_weight, c, s) for one, c, s in tables])
    v = torch.cat([stream.v for stream in streams]).view(q.shape)
    if order is None:
        return int8_attention(q, k, v, offsets).flatten(1)
    out = torch.empty_like(q)
    out[order] = int8_attention(q[order], k[order], v[order], offsets)
    return out.flatten(1)


def int8_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Attention within each segment of a packed sequence, as the model's `boundary_attention`, but quantised.

    q, k, v: float32 [L, H, C]; offsets: int32, ascending, offsets[-1] == L, the last segment is padding. Returns
    [L, H, C], zero for padding.
    """
    out = torch.zeros_like(q)
    for start, end in itertools.pairwise(offsets.tolist()[:-1]):
        if end > start:
            out[start:end] = _segment(*(x[start:end].transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    return out


def _segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[H, N, C] each -> [H, N, C]."""
    (queries, query_steps), (keys, key_steps), (values, value_steps) = _rounded(q, -1), _rounded(k, -1), _rounded(v, -2)
    scores = (queries @ keys.mT) * (query_steps * key_steps.mT * (math.log2(math.e) / math.sqrt(q.shape[-1])))
    most = torch.full_like(scores[..., :1], -math.inf)
    total, sums = torch.zeros_like(q), torch.zeros_like(most)
    for start in range(0, k.shape[-2], BLOCK):
        block, rows = scores[..., start : start + BLOCK], values[..., start : start + BLOCK, :]
        high = block.amax(-1, keepdim=True)
        weights = torch.exp2(block - high + math.log2(HEAVIEST)).round()
        top = torch.maximum(most, high)
        before, now = torch.exp2(most - top), torch.exp2(high - top)
        total = total * before + (weights @ rows) * now
        sums = sums * before + weights.sum(-1, keepdim=True) * now
        most = top
    return total / sums * value_steps


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Quantise x to -127..127 with one scale along `dim`; returns values and scales, 0 where all are zero."""
    step = x.abs().amax(dim, keepdim=True) / LARGEST
    return (x / torch.where(step > 0, step, torch.ones_like(step))).round(), step
