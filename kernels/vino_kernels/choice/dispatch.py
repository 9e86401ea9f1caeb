"""The operations as callers use them: they run the table's choice, or the implementation that the caller names.

For CPU tensors `torch` runs. Naming an implementation that does not support the call is an error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vino_kernels import boundary_attention as attention_kernel
from vino_kernels import gated_residual as gated_kernel
from vino_kernels import guide_and_step as step_kernel
from vino_kernels import norm_modulate as norm_kernel
from vino_kernels import qk_norm_rope as rope_kernel
from vino_kernels.choice.attention import BACKENDS, Bounds, flash_varlen, flex, flex_mask, per_segment
from vino_kernels.choice.facts import Device, Needs, Shape
from vino_kernels.choice.implementations import implementation_of
from vino_kernels.choice.lookup import choose
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.norm_modulate.ref import norm_modulate_ref
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_ref


def boundary_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    groups: Tensor | None = None,
    *,
    bounds: Bounds | None = None,
    implementation: str | None = None,
) -> Tensor:
    """The attention of `vino_kernels.boundary_attention`, without its log-sum-exp: out [L, H, C].

    bounds: the same tables on the host, for implementations with one call per segment; they must stay valid as long as
    anything recorded from this call is in use. If None, they are read from tables on the CPU; for tables on a CUDA
    device they are unknown: our kernel reads them there, and every entry counts as a segment.
    Raises ValueError if no implementation, or not the one named, supports the call.
    """
    if bounds is None and not offsets.is_cuda:
        bounds = Bounds.of(offsets, groups)
    segments = bounds.segments if bounds is not None else offsets.shape[0] - 2
    variant = "" if groups is None else "isolated"
    shape = Shape(q.dtype, q.shape[0], q.shape[2], q.shape[1], max(1, segments), variant)
    needs = _needs((q, k, v), host_bounds=bounds is not None)
    chosen = _resolve("boundary_attention", shape, q.device, needs, implementation)
    if chosen == "flex":
        return flex(q, k, v, flex_mask(q.shape[0], offsets, groups))
    if chosen == "flash_varlen":
        return flash_varlen(q, k, v, offsets)
    if chosen in BACKENDS:
        assert bounds is not None, "chosen without the bounds it reads"
        return per_segment(q, k, v, bounds, BACKENDS[chosen])
    return attention_kernel.boundary_attention(q, k, v, offsets, groups, tma=chosen == "vino_tma")[0]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    positions: Tensor,
    axes: Sequence[int],
    theta: float,
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `vino_kernels.qk_norm_rope`."""
    shape = Shape(q.dtype, q.shape[0], q.shape[2], q.shape[1])
    needs = _needs((q, k, q_weight, k_weight))
    ours = _resolve("qk_norm_rope", shape, q.device, needs, implementation) == "vino"
    run = rope_kernel.qk_norm_rope if ours else qk_norm_rope_ref
    return run(q, k, q_weight, k_weight, positions, axes, theta)


def norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    rms: bool = False,
    out_scale: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """As `vino_kernels.norm_modulate`."""
    shape = Shape(x.dtype, x.shape[0], x.shape[1], variant="" if out_scale is None else "fp8")
    chosen = _resolve("norm_modulate", shape, x.device, _needs((x, shift, scale)), implementation)
    if chosen == "vino":
        return norm_kernel.norm_modulate(x, shift, scale, rms=rms, out_scale=out_scale)
    return norm_modulate_ref(x, shift, scale, rms, out_scale)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, *, implementation: str | None = None) -> Tensor:
    """As `vino_kernels.gated_residual`."""
    shape = Shape(x.dtype, x.shape[0], x.shape[1])
    ours = _resolve("gated_residual", shape, x.device, _needs((x, gate, y)), implementation) == "vino"
    return (gated_kernel.gated_residual if ours else gated_residual_ref)(x, gate, y)


def guide_and_step(
    latents: Tensor, velocity: Tensor, guidance: Tensor, delta: Tensor, *, implementation: str | None = None
) -> Tensor:
    """As `vino_kernels.guide_and_step`."""
    channels = latents.shape[-1]
    rows = latents.numel() // max(channels, 1)
    shape = Shape(latents.dtype, rows, channels, segments=max(1, velocity.shape[0]))
    needs = _needs((latents, velocity, guidance, delta))
    ours = _resolve("guide_and_step", shape, latents.device, needs, implementation) == "vino"
    return (step_kernel.guide_and_step if ours else guide_and_step_ref)(latents, velocity, guidance, delta)


def _needs(tensors: tuple[Tensor, ...], *, host_bounds: bool = True) -> Needs:
    """Requirements that follow from PyTorch's state and these tensors."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return Needs(
        gradients=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        capture=tensors[0].is_cuda and torch.cuda.is_current_stream_capturing(),
        host_bounds=host_bounds,
        deterministic=strict,
    )


def _resolve(operation: str, shape: Shape, device: torch.device, needs: Needs, named: str | None) -> str:
    """Name of the implementation to call; one named by the caller is checked, not looked up."""
    if named is None:
        return choose(operation, shape, Device.of(device), needs).implementation
    known = implementation_of(operation, named)
    refusal = known.refusal(shape, Device.of(device), needs) if device.type == "cuda" else None
    if refusal is not None:
        raise ValueError(f"{operation} by {named!r} cannot serve {shape} on {device}: {refusal}")
    return named
