"""Attention of the vision-language model: plain PyTorch bodies that become single nodes when a module is exported.

The counterpart of `ops` for the VLM: causal attention within a prompt, full attention within a frame.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_rt.models.vino.layers import widen
from vino_rt.models.vino.ops import NAMESPACE

_host_bounds: ContextVar[Sequence[int] | None] = ContextVar("host_bounds", default=None)


@contextmanager
def known_bounds(bounds: Sequence[int]) -> Iterator[None]:
    """Inside the block and in this thread, tell `causal_attention` the values of its `offsets`.

    Otherwise it reads them from the tensor, which on a GPU makes the host wait for the device in every layer.
    """
    before = _host_bounds.set(bounds)
    try:
        yield
    finally:
        _host_bounds.reset(before)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each channel pair (i, i + C/2) of every head of x [..., L, H, C]; cos, sin: float32 [L, C/2].

    Computed in float32, returned in x's dtype.
    """
    first, second = widen(x).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Causal attention within each segment of a packed sequence and nothing across segments.

    q: [L, H, C]. k, v: [L, K, C], each head shared by H/K consecutive heads of the queries. offsets: as in
    `ops.boundary_attention`; the last segment is padding and its output rows are zero. Returns [L, H, C].
    """
    body = _causal_attention_node if torch.compiler.is_exporting() else _causal_attention
    return body(q, k, v, offsets)


def frame_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention within each frame: q, k, v [F, n, H, C] -> the same shape."""
    body = _frame_attention_node if torch.compiler.is_exporting() else _frame_attention
    return body(q, k, v)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    known = _host_bounds.get()
    bounds = offsets.tolist() if known is None else known
    assert len(bounds) == len(offsets), "bounds of other segments"
    parts, start = [], 0
    # Neighbouring segments of equal length share a call; in a padded training batch these are all segments.
    for length, run in itertools.groupby(end - begin for begin, end in itertools.pairwise(bounds[:-1])):
        end = start + length * len(list(run))
        if end > start:
            a, b, c = (x[start:end].reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            mixed = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])
            parts.append(mixed.transpose(1, 2).flatten(0, 1))
        start = end
    if rest := bounds[-1] - start:
        parts.append(q.new_zeros(rest, *q.shape[1:]))
    return torch.cat(parts)


def _frame_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2).contiguous()


_causal_attention_node = torch.library.custom_op(f"{NAMESPACE}::causal_attention", _causal_attention, mutates_args=())
_frame_attention_node = torch.library.custom_op(f"{NAMESPACE}::frame_attention", _frame_attention, mutates_args=())


@_causal_attention_node.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@_frame_attention_node.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)
