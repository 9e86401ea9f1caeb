"""The reference of `boundary_attention` in plain PyTorch, with a dense mask per segment; also runs CPU tensors.

It reads the tables on the host. Scores have the dtype of q, the softmax is float32, or float64 for float64 tensors.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `vino_kernels.boundary_attention`; also supports float64, with a float64 log-sum-exp."""
    outs, lses = [], []
    for rows, sees in _segments(offsets, groups):
        scores = _scores(q[rows], k[rows], sees)
        outs.append(torch.einsum("hij,jhc->ihc", scores.softmax(-1).to(v.dtype), v[rows]))
        lses.append(scores.logsumexp(-1).T)
    padding = q.shape[0] - sum(len(out) for out in outs)
    outs.append(q.new_zeros(padding, *q.shape[1:]))
    lses.append(q.new_full((padding, q.shape[1]), float("-inf"), dtype=_wide(q)))
    return torch.cat(outs), torch.cat(lses)


def backward(
    grads: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    offsets: Tensor,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v [L, H, C] from those of out and lse; `results` are out and lse. Padding gets zeros."""
    (grad_out, grad_lse), (q, k, v), (out, lse) = grads, inputs, results
    grad_q, grad_k, grad_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs)
    scale = q.shape[2] ** -0.5
    for rows, sees in _segments(offsets, groups):
        weights = (_scores(q[rows], k[rows], sees) - lse[rows].T[..., None]).exp()
        part = grad_out[rows]
        grad_v[rows] = torch.einsum("hij,ihc->jhc", weights.to(part.dtype), part)
        grad_weights = torch.einsum("ihc,jhc->hij", part, v[rows])
        shift = (part.to(_wide(q)) * out[rows]).sum(-1) - grad_lse[rows]
        grad_scores = (weights * (grad_weights - shift.T[..., None]) * scale).to(q.dtype)
        grad_q[rows] = torch.einsum("hij,jhc->ihc", grad_scores, k[rows])
        grad_k[rows] = torch.einsum("hij,ihc->jhc", grad_scores, q[rows])
    return grad_q, grad_k, grad_v


def _segments(offsets: Tensor, groups: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each segment that is neither empty nor padding, and its mask, bool [n, n]."""
    cuts = offsets if groups is None else groups
    for start, end in itertools.pairwise(offsets.tolist()[:-1]):
        if end > start:
            group = torch.searchsorted(cuts, torch.arange(start, end, device=cuts.device), right=True)
            yield slice(start, end), (group[:, None] == group) | (group == group[-1])[:, None]


def _scores(q: Tensor, k: Tensor, sees: Tensor) -> Tensor:
    """Scaled scores [H, n, n] of a segment, -inf where masked."""
    scores = torch.einsum("ihc,jhc->hij", q * q.shape[2] ** -0.5, k)
    return scores.to(_wide(q)).masked_fill(~sees, float("-inf"))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
