"""The Triton kernel of `guide_and_step`: one program for a run of elements, all branches of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.grid import grid
from vino_kernels.guide_and_step.configs import GRID, WARPS, constants
from vino_kernels.launching import check_dtypes


@triton.jit(do_not_specialize_on_alignment=["guidance_ptr", "delta_ptr"])
def guide_and_step_kernel(
    latents_ptr,
    velocity_ptr,
    guidance_ptr,
    delta_ptr,
    out_ptr,
    count,
    BRANCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements program_id(0) * BLOCK and following, of `count`."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    mixed = tl.load(velocity_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if BRANCHES > 1:
        prompt = tl.load(guidance_ptr)
        # `count` is added twice rather than doubled: twice the count may not fit into its type.
        negative = tl.load(velocity_ptr + (offsets + count), mask=mask, other=0.0).to(tl.float32)
        if BRANCHES == 2:
            mixed = negative + prompt * (mixed - negative)
        else:
            bare = tl.load(velocity_ptr + (offsets + count + count), mask=mask, other=0.0).to(tl.float32)
            mixed = bare + tl.load(guidance_ptr + 1) * (negative - bare) + prompt * (mixed - negative)
    latents = tl.load(latents_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    stepped = latents - tl.load(delta_ptr) * mixed
    tl.store(out_ptr + offsets, stepped.to(out_ptr.dtype.element_ty), mask=mask)


def launch(latents: Tensor, velocity: Tensor, guidance: Tensor, delta: Tensor) -> Tensor:
    """Run the kernel; arguments as of `guide_and_step`."""
    check_dtypes("guide_and_step", latents=latents, velocity=velocity)
    latents, velocity, guidance = latents.contiguous(), velocity.contiguous(), guidance.contiguous()
    out = torch.empty_like(latents)
    count = latents.numel()
    values = constants(velocity.shape[0])
    torch.library.wrap_triton(guide_and_step_kernel)[grid(GRID, {"count": count, **values})](
        latents, velocity, guidance, delta, out, count, **values, num_warps=WARPS
    )
    return out
