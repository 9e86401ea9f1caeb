"""Attention over a packed sequence: every row attends to its segment, or to its own reference, and nothing else.

`ref.py` is the reference, `triton.py` has the kernels, `configs.py` chooses tiles, `launch.py` launches, `op.py`
registers the operation with PyTorch.
"""

import torch
from torch import Tensor

from vino_kernels.boundary_attention import op
from vino_kernels.boundary_attention.configs import DTYPES, HEAD_LIMIT

__all__ = ["boundary_attention", "merge"]


def boundary_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None = None, *, tma: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention within each segment of a packed sequence and nothing across segments, scaled by C**-0.5.

    q, k, v: [L, H, C] in float32, float16 or bfloat16; rows and heads may have any stride.
    offsets: int32 [S+1], ascending from 0 to L; segment i is rows offsets[i]:offsets[i+1] and may be empty. The last
    segment is padding: no row attends to it and its output rows are zero.
    groups: int32 [G+1], ascending from 0 to L, cuts that contain every cut of `offsets`. The last group of a segment
    (its target and text) sees the whole segment; any other (a reference between its boundary rows) sees itself alone.
    None: everything in a segment sees everything in it.
    tma: by the kernel whose tiles are copied by hardware on GPUs of compute capability 9.0 and later; then a head is a
    whole number of 16 bytes.

    Returns out [L, H, C] and the natural log-sum-exp of the scaled scores, float32 [L, H], -inf in padding.
    The values of both tables are not checked: on a GPU, an entry above L reads out of bounds.
    """
    _check(q, k, v, offsets, groups)
    out, lse = op.forward(q, k, v, offsets, groups, tma)
    return out, lse


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the attention over two disjoint sets of keys into that over their union.

    out: [L, H, C]; lse: float32 [L, H], -inf where a row has no keys. Returns out, in the dtype of out_a, and lse for
    the union; computed in float32.
    """
    peak = torch.maximum(lse_a, lse_b).detach()
    unseen = peak == float("-inf")
    peak = peak.masked_fill(unseen, 0)
    weight_a, weight_b = (lse_a - peak).exp(), (lse_b - peak).exp()
    total = (weight_a + weight_b).masked_fill(unseen, 1)
    mixed = out_a * (weight_a / total)[..., None] + out_b * (weight_b / total)[..., None]
    return mixed.to(out_a.dtype), (peak + total.log()).masked_fill(unseen, float("-inf"))


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None) -> None:
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"q, k and v must be [L, H, C] alike, got {[tuple(x.shape) for x in (q, k, v)]}")
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k and v must be one of {DTYPES}, got {[x.dtype for x in (q, k, v)]}")
    if not 1 <= q.shape[2] <= HEAD_LIMIT:
        raise ValueError(f"head size {q.shape[2]}: legal is 1 to {HEAD_LIMIT}")
    for name, table in (("offsets", offsets), ("groups", groups)):
        if table is None:
            continue
        if table.dtype != torch.int32 or table.dim() != 1 or table.shape[0] < 2 or not table.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 with 2 or more entries, got {table.dtype} {table.shape}")
    devices = {x.device for x in (q, k, v, offsets, groups) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must lie on one device, got {sorted(map(str, devices))}")
