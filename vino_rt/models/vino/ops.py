"""The hot operations of the MMDiT: plain PyTorch bodies that become single nodes when a module is exported.

An engine may replace a node by a kernel of its own; the bodies here are the reference it is compared with. Eager code
runs the bodies directly, so that autograd works, unless `operations` substitutes others.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_rt.models.vino.layers import NORM_EPS, split_heads, widen

NAMESPACE = "vino"
MANY_SEGMENTS = 4
"""Above this many segments (training only), batched calls with padding cost less than one call per segment."""
ALIKE = 1.4
"""A batched call takes segments up to this many times its shortest; one call for all would be mostly padding."""


@dataclass(frozen=True, eq=False)
class RopeTables:
    """The rotary embedding of rows of queries and keys: tables, and the positions they are computed from."""

    cos: Tensor
    """float32 [L, C/2] from `rope_table`; so is `sin`."""
    sin: Tensor
    positions: Tensor
    """int32 [L, 3] as (t, h, w)"""
    axes: tuple[int, int, int]
    """Channels of a head that t, h and w rotate."""
    theta: float
    """Base of the frequencies."""

    def rows(self, part: slice) -> "RopeTables":
        """The same embedding for a slice of the rows."""
        return RopeTables(self.cos[part], self.sin[part], self.positions[part], self.axes, self.theta)


@dataclass(frozen=True, eq=False)
class Stream:
    """Queries, keys and values of one stream, before norm and rotation."""

    q: Tensor
    """[L, D]; so are `k` and `v`."""
    k: Tensor
    v: Tensor
    q_weight: Tensor
    """[C], weight of the queries' RMSNorm; `k_weight`: of the keys'."""
    k_weight: Tensor

    def rotated(self, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        """Normed and rotated queries and keys, and values, [L, H, C] each."""
        q, k, v = (split_heads(x, len(self.q_weight)) for x in (self.q, self.k, self.v))
        return *rotate(q, k, self.q_weight, self.k_weight, rope), v


def _joint_attention(streams: Sequence[Stream], rope: RopeTables, offsets: Tensor, orders: Tensor | None) -> Tensor:
    if orders is None:
        (stream,) = streams
        return boundary_attention(*stream.rotated(rope), offsets).flatten(1)
    start, rotated = 0, []
    for stream in streams:
        end = start + stream.q.shape[0]
        rotated.append(stream.rotated(rope.rows(slice(start, end))))
        start = end
    joint, back = orders.unbind(0)
    q, k, v = (torch.cat(parts).index_select(0, joint) for parts in zip(*rotated, strict=True))
    return boundary_attention(q, k, v, offsets).flatten(1).index_select(0, back)


@dataclass(frozen=True)
class Operations:
    """Implementations of the hot operations, with the signatures of the functions below."""

    rotate: Callable[[Tensor, Tensor, Tensor, Tensor, RopeTables], tuple[Tensor, Tensor]]
    boundary_attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    norm_modulate: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated_residual: Callable[[Tensor, Tensor, Tensor], Tensor]
    joint_attention: Callable[[Sequence[Stream], RopeTables, Tensor, Tensor | None], Tensor] = _joint_attention
    """By default composed of the other operations; an engine may have one kernel for all of it."""


@contextmanager
def operations(bodies: Operations) -> Iterator[None]:
    """Run or export modules with these implementations inside the block, in this thread only.

    Not for training: gradients and modulations per row are not supported.
    """
    before = _bodies.set(bodies)
    try:
        yield
    finally:
        _bodies.reset(before)


def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
    """`qk_norm_rope` of queries and keys, both [L, H, C], each with its own weight [C]."""
    return _chosen().rotate(q, k, q_weight, k_weight, rope)


def qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS-normalise every head of x and rotate its interleaved channel pairs (MODEL.md section 4, 3D RoPE).

    x: [L, H, C]; weight: [C]; cos, sin: float32 [L, C/2] from `rope_table`.
    Returns [L, H, C] in x's dtype. Variance and rotation are computed in float32, with a cast between them.
    """
    body = _qk_norm_rope_node if torch.compiler.is_exporting() else _qk_norm_rope
    return body(x, weight, cos, sin)


def boundary_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Attention within each segment of a packed sequence and none across segments.

    q, k, v: [L, H, C]; offsets: int32, ascending, offsets[-1] == L; segment i is rows offsets[i]:offsets[i+1] and may
    be empty. The last segment is padding: nobody attends to it and its output rows are zero.
    Returns [L, H, C].
    """
    return _chosen().boundary_attention(q, k, v, offsets)


def joint_attention(
    streams: Sequence[Stream], rope: RopeTables, offsets: Tensor, orders: Tensor | None = None
) -> Tensor:
    """Norm and rotate the queries and keys of all streams, then run `boundary_attention` over the packed sequence.

    rope: for the rows of the concatenated streams. offsets: segments of the sequence. orders: int64 [2, J], the row of
    the concatenated streams that each row of the sequence comes from, and the inverse permutation; None for a single
    stream already in the sequence's order. Returns [J, D] in the order of the streams.
    """
    return _chosen().joint_attention(streams, rope, offsets, orders)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift: LayerNorm without affine of rows [L, D], with shift and scale [D] or [L, D]."""
    return _chosen().norm_modulate(x, shift, scale)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y for rows x, y [L, D] and gate [D] or [L, D]."""
    return _chosen().gated_residual(x, gate, y)


def _gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return x + gate * y


def _rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
    return qk_norm_rope(q, q_weight, rope.cos, rope.sin), qk_norm_rope(k, k_weight, rope.cos, rope.sin)


def plain_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`norm_modulate` in PyTorch's own operators, whatever `operations` substitutes."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def _qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = widen(x)
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)
    # Explicit type promotion and rotation as complex numbers: PyTorch's CPU kernels for mixed types and for strided
    # channels take four times as long for the same values.
    scaled = widen(normed.to(torch.promote_types(x.dtype, weight.dtype)) * weight)
    pairs = torch.view_as_complex(scaled.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2).to(x.dtype)


def _boundary_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    bounds = offsets.tolist()
    if len(bounds) - 2 > MANY_SEGMENTS:
        return _batched_attention(q, k, v, offsets)
    parts = []
    for start, end in itertools.pairwise(bounds[:-1]):
        if end > start:
            q_part, k_part, v_part = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            parts.append(F.scaled_dot_product_attention(q_part, k_part, v_part).squeeze(0).transpose(0, 1))
    parts.append(q.new_zeros((bounds[-1] - bounds[-2], *q.shape[1:])))
    return torch.cat(parts)


def _batched_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Attention for the many short segments of a training batch: one padded call per group of similar length."""
    bounds = offsets.tolist()
    lengths, rows = [end - start for start, end in itertools.pairwise(bounds[:-1])], bounds[-2]
    groups = _alike(lengths)
    first, total = [0] * len(lengths), 0
    for members in groups:
        for member in members:
            first[member], total = total, total + lengths[members[-1]]
    sizes = torch.tensor(lengths, device=q.device)
    shift = torch.tensor(first, device=q.device) - offsets[:-2]
    slot = torch.arange(rows, device=q.device) + shift.repeat_interleave(sizes)
    q, k, v = (x.new_zeros(total, *x.shape[1:]).index_copy(0, slot, x[:rows]) for x in (q, k, v))
    attend = _plain_attention if q.device.type == "cpu" else F.scaled_dot_product_attention
    mixed = []
    for members in groups:
        start, longest = first[members[0]], lengths[members[-1]]
        seen = (torch.arange(longest, device=q.device) < sizes[members][:, None])[:, None, None]
        part = slice(start, start + len(members) * longest)
        own_q, own_k, own_v = (x[part].view(-1, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        mixed.append(attend(own_q, own_k, own_v, seen).transpose(1, 2).flatten(0, 1))
    packed = torch.cat(mixed).index_select(0, slot) if mixed else q
    return F.pad(packed, (0, 0, 0, 0, 0, bounds[-1] - rows))


def _alike(lengths: list[int]) -> list[list[int]]:
    """Group the indices of non-empty segments by similar length, shortest first."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[number] <= ALIKE * lengths[groups[-1][0]]:
            groups[-1].append(number)
        elif lengths[number]:
            groups.append([number])
    return groups


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention [B, H, L, C] with mask `seen`, unfused: on a CPU the fused call is three times slower in bfloat16."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed: Tensor = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(v.dtype) @ v
    return mixed


PLAIN = Operations(_rotate, _boundary_attention, plain_norm_modulate, _gated_residual)
_bodies: ContextVar[Operations] = ContextVar("bodies", default=PLAIN)

_norm_modulate_node = torch.library.custom_op(f"{NAMESPACE}::norm_modulate", plain_norm_modulate, mutates_args=())
_qk_norm_rope_node = torch.library.custom_op(f"{NAMESPACE}::qk_norm_rope", _qk_norm_rope, mutates_args=())
_boundary_attention_node = torch.library.custom_op(
    f"{NAMESPACE}::boundary_attention", _boundary_attention, mutates_args=()
)


torch.library.define(
    f"{NAMESPACE}::joint_attention",
    "(Tensor[] streams, Tensor cos, Tensor sin, Tensor offsets, Tensor? orders) -> Tensor",
)


def _joint_attention_node(
    streams: Sequence[Stream], rope: RopeTables, offsets: Tensor, orders: Tensor | None
) -> Tensor:
    """A node for exported programs, without a body; it stands for `_joint_attention`."""
    flat = [tensor for s in streams for tensor in (s.q, s.k, s.v, s.q_weight, s.k_weight)]
    out: Tensor = torch.ops.vino.joint_attention(flat, rope.cos, rope.sin, offsets, orders)
    return out


NODES = Operations(_rotate, _boundary_attention_node, _norm_modulate_node, _gated_residual)


JOINT_NODES = replace(NODES, joint_attention=_joint_attention_node)
"""For exports that keep joint attention as a single node."""


def _chosen() -> Operations:
    """The implementations that `operations` has set, else the plain bodies, or their nodes during an export."""
    bodies = _bodies.get()
    return NODES if bodies is PLAIN and torch.compiler.is_exporting() else bodies


@_norm_modulate_node.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@_qk_norm_rope_node.register_fake
def _(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@_boundary_attention_node.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(q)


@torch.library.register_fake(f"{NAMESPACE}::joint_attention")  # type: ignore[untyped-decorator]
def _(streams: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor, orders: Tensor | None) -> Tensor:
    return streams[0].new_empty(cos.shape[0], streams[0].shape[1])
