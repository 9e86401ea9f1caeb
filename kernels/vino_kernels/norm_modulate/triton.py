"""The Triton kernel of `norm_modulate`: each row is read once and stays in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.grid import grid
from vino_kernels.launching import FP8_CAPABILITY, check_dtypes
from vino_kernels.norm_modulate.configs import GRID, choose, constants


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["out_scale_ptr"])
def norm_modulate_kernel(
    x_ptr,
    shift_ptr,
    scale_ptr,
    out_scale_ptr,
    out_ptr,
    rows,
    WIDTH: tl.constexpr,
    RMS: tl.constexpr,
    QUANTISE: tl.constexpr,
    EPS: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows program_id(0) * BLOCK_ROWS and following; BLOCK holds a whole row. out_scale_ptr is read if QUANTISE."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row[:, None] < rows) & (column[None, :] < WIDTH)
    offsets = row[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if not RMS:
        mean = tl.sum(x, axis=1) * (1.0 / WIDTH)
        x = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(x * x, axis=1) * (1.0 / WIDTH)
    normed = x * tl.rsqrt(variance + EPS)[:, None]
    scale = tl.load(scale_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    out = normed * (1.0 + scale)[None, :] + shift[None, :]
    if QUANTISE:
        out = out * (1.0 / tl.load(out_scale_ptr))
        # NaN stays NaN, as in the reference; what is finite must not become NaN by overflow.
        out = tl.where(out > LIMIT, LIMIT, tl.where(out < -LIMIT, -LIMIT, out))
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def launch(x: Tensor, shift: Tensor, scale: Tensor, rms: bool, out_scale: Tensor | None) -> Tensor:
    """Run the kernel; arguments as of `norm_modulate`."""
    check_dtypes("norm_modulate", x=x, shift=shift, scale=scale)
    quantise = out_scale is not None
    if quantise and x.is_cuda and torch.cuda.get_device_capability(x.device) < FP8_CAPABILITY:
        raise RuntimeError("norm_modulate: float8_e4m3fn takes a GPU of compute capability 8.9 or above")
    x, shift, scale = x.contiguous(), shift.contiguous(), scale.contiguous()
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if quantise else x.dtype)
    rows, width = x.shape
    values = constants(width, rms=rms, quantise=quantise)
    torch.library.wrap_triton(norm_modulate_kernel)[grid(GRID, {"rows": rows, **values})](
        x,
        shift,
        scale,
        x if out_scale is None else out_scale,
        out,
        rows,
        **values,
        num_warps=choose(width, quantise=quantise).warps,
    )
    return out
