"""RMSNorm and 3D rotary embedding of queries and keys in one pass, from integer positions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vino_kernels.launching import kernel_of
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_grad, qk_norm_rope_ref

NAME = "vino_kernels::qk_norm_rope"


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, positions: Tensor, axes: Sequence[int], theta: float
) -> tuple[Tensor, Tensor]:
    """RMSNorm every head of q and k and rotate its interleaved channel pairs (MODEL.md section 4, 3D RoPE).

    q, k: [L, H, C] of one shape; q_weight, k_weight: [C]; positions: int32 [L, 3] as (t, h, w); axes: channels of a
    head given to each of the three, even numbers that add up to C. A row at position (0, 0, 0), such as text, is not
    rotated. Variance, angles and rotation are computed in float32, with a cast to q's dtype before the weight.
    Returns q' and k', shapes and dtypes of q and k. Differentiable in q, k and the weights.
    Raises ValueError for shapes that do not fit.
    """
    channels = q.shape[-1]
    if q.dim() != 3 or k.shape != q.shape:
        raise ValueError(f"q is {tuple(q.shape)} and k {tuple(k.shape)}; both must be [L, H, C] of one shape")
    if len(axes) != 3 or sum(axes) != channels or any(size < 0 or size % 2 for size in axes):
        raise ValueError(f"axes {tuple(axes)} must be three even numbers that add up to {channels}")
    if tuple(positions.shape) != (q.shape[0], 3) or positions.dtype != torch.int32:
        raise ValueError(f"positions are {positions.dtype} {tuple(positions.shape)}; must be int32 [{q.shape[0]}, 3]")
    turned: tuple[Tensor, Tensor] = _op(q, k, q_weight, k_weight, positions, list(axes), theta)
    return turned


@torch.library.triton_op(NAME, mutates_args=())
def _op(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, positions: Tensor, axes: Sequence[int], theta: float
) -> tuple[Tensor, Tensor]:
    run = qk_norm_rope_ref if q.device.type == "cpu" else kernel_of("qk_norm_rope")
    turned: tuple[Tensor, Tensor] = run(q, k, q_weight, k_weight, positions, axes, theta)
    return turned


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, q_weight, k_weight, positions, ctx.axes, ctx.theta = inputs
    ctx.save_for_backward(q, k, q_weight, k_weight, positions)


def _backward(ctx: Any, q_grad: Tensor, k_grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, q_weight, k_weight, positions = ctx.saved_tensors
    turn = positions, ctx.axes, ctx.theta
    q_in, q_weight_in = qk_norm_rope_grad(q_grad, q, q_weight, *turn)
    k_in, k_weight_in = qk_norm_rope_grad(k_grad, k, k_weight, *turn)
    return q_in, k_in, q_weight_in, k_weight_in, None, None, None


_op.register_autograd(_backward, setup_context=_setup)
