"""PyTorch's own attention on packed sequences: one call per run of rows with the same keys, flash attention with the
segment bounds on the device, or FlexAttention.

Implementations for `dispatch.boundary_attention`, tested against the operation's `ref.py`; they return no log-sum-exp.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

BACKENDS = {"torch": None, "sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
"""SDPA backend by implementation; None lets PyTorch choose."""


@dataclass(frozen=True)
class Bounds:
    """The segment and group tables of `boundary_attention`, on the host."""

    offsets: tuple[int, ...]
    groups: tuple[int, ...] | None = None

    @classmethod
    def of(cls, offsets: Tensor, groups: Tensor | None = None) -> "Bounds":
        """Read from tensors; for CUDA tensors this waits for the device."""
        return cls(tuple(offsets.tolist()), None if groups is None else tuple(groups.tolist()))

    @property
    def segments(self) -> int:
        """Number of segments that are neither empty nor padding."""
        return sum(end > start for start, end in itertools.pairwise(self.offsets[:-1]))

    def views(self) -> Iterator[tuple[slice, slice]]:
        """Yield runs of query rows, ascending, with the keys that they attend to; together all rows but padding."""
        for start, end in itertools.pairwise(self.offsets[:-1]):
            inner = {cut for cut in self.groups or () if start < cut < end}
            cuts = sorted({start, end} | inner)
            for first, last in itertools.pairwise(cuts):
                yield slice(first, last), slice(start, end) if last == end else slice(first, last)


def per_segment(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, backend: SDPBackend | None = None) -> Tensor:
    """Attention [L, H, C] by `scaled_dot_product_attention`, one call for each of `bounds.views()`; padding is zero.

    backend: the only one that PyTorch may use, a process-wide setting while this runs; PyTorch raises RuntimeError if
    it cannot. None: any.
    """
    with nullcontext() if backend is None else sdpa_kernel(backend):
        parts = [_attend(q[rows], k[keys], v[keys]) for rows, keys in bounds.views()]
    padding = bounds.offsets[-1] - bounds.offsets[-2]
    if padding or not parts:
        parts.append(q.new_zeros(padding, *q.shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    return F.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2])[0].transpose(0, 1)


def flash_varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Attention [L, H, C] of whole segments in one call, which reads `offsets` on the device; padding is zero.

    A recording in a CUDA graph is valid for every table with the same number of entries.
    """
    rows, cuts = q.shape[0], offsets[:-1]
    if not rows or cuts.shape[0] < 2:
        return torch.zeros_like(q)
    # FlashAttention requires channels to be contiguous.
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    # The longest segment is known on the device only; a larger bound costs programs that exit at once.
    out = varlen_attn(q, k, v, cuts, cuts, rows, rows)
    assert isinstance(out, Tensor), "the log-sum-exp comes only where it is asked for"
    # The rows after the last segment were not written.
    padding = torch.arange(rows, device=q.device) >= cuts[-1]
    return out.masked_fill_(padding[:, None, None], 0)


def flex_mask(rows: int, offsets: Tensor, groups: Tensor | None = None) -> BlockMask:
    """The block mask for `flex`, made from the tables on their device; needed once per request.

    On a CUDA device this is compiled; otherwise it would build a mask of rows x rows.
    """
    row = torch.arange(rows, dtype=offsets.dtype, device=offsets.device)
    segment = torch.searchsorted(offsets, row, right=True)
    cuts = offsets if groups is None else groups
    group = torch.searchsorted(cuts, row, right=True)
    # The group of the last row of each row's segment: it sees the whole segment.
    last = group[(offsets[segment.clamp(max=offsets.shape[0] - 1)] - 1).clamp(0, max(rows - 1, 0)).long()]
    padding = offsets.shape[0] - 1

    def sees(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        together = (segment[i] == segment[j]) & (segment[i] < padding)
        return together & ((group[i] == group[j]) | (group[i] == last[i]))

    mask: BlockMask = _compiled(create_block_mask, offsets.is_cuda)(sees, None, None, rows, rows, device=offsets.device)
    return mask


def flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention [L, H, C] by FlexAttention, compiled for the shape on a CUDA device; padding is zero."""
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out: Tensor = _compiled(flex_attention, q.is_cuda)(*heads_first, block_mask=mask)
    return out[0].transpose(0, 1)


@cache
def _compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """The function itself or, if `compiled`, compiled anew for every shape."""
    made: Callable[..., Any] = torch.compile(function, dynamic=False) if compiled else function
    return made
