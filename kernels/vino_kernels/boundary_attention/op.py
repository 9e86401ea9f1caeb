"""`boundary_attention` as a PyTorch operation: Triton kernels for CUDA tensors, the reference for CPU tensors.

Export keeps it as one node; torch.compile sees the kernels inside. Without Triton, everything but CUDA tensors works.
In a process whose kernels were created for Triton's interpreter, CPU tensors run the kernels as well.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.library import triton_op

from vino_kernels.boundary_attention import ref
from vino_kernels.launching import kernel_of

NAME = "vino_kernels::boundary_attention"
FOLDER = "boundary_attention"

Register = Callable[..., Callable[[Callable[..., Any]], CustomOpDef]]
register: Register = triton_op


def interpreted() -> bool:
    """Whether this process has created its kernels for Triton's interpreter; creates none to find out."""
    kernels = sys.modules.get(f"vino_kernels.{FOLDER}.triton")
    return kernels is not None and not isinstance(kernels.forward_kernel, sys.modules["triton"].JITFunction)


@register(NAME, mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None, tma: bool = False
) -> tuple[Tensor, Tensor]:
    """See `vino_kernels.boundary_attention`; arguments are not checked."""
    launch = _launch_of(tma)
    made: tuple[Tensor, Tensor] = launch(q, k, v, offsets, groups)
    return made


@forward.register_kernel("cpu")
def _(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None, tma: bool = False
) -> tuple[Tensor, Tensor]:
    run = _launch_of(tma) if interpreted() else ref.forward
    return run(q, k, v, offsets, groups)


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None, tma: bool = False
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@register(f"{NAME}_backward", mutates_args=())
def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous, from those of out and lse."""
    launch = kernel_of(FOLDER, "launch", "launch_backward")
    made: tuple[Tensor, Tensor, Tensor] = launch((grad_out, grad_lse), (q, k, v), (out, lse), offsets, groups)
    return made


@backward.register_kernel("cpu")
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = ref.backward
    if interpreted():
        run = kernel_of(FOLDER, "launch", "launch_backward")
    return run((grad_out, grad_lse), (q, k, v), (out, lse), offsets, groups)


@backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _launch_of(tma: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return kernel_of(FOLDER, "launch", "launch_tma" if tma else "launch_forward")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, groups, _ = inputs
    ctx.save_for_backward(q, k, v, *output, offsets, groups)


def _gradients(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, offsets, groups = ctx.saved_tensors
    return *backward(grad_out, grad_lse, q, k, v, out, lse, offsets, groups), None, None, None


forward.register_autograd(_gradients, setup_context=_save)
