"""The Triton kernel of `norm_modulate`: each row is read once and stays in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.grid import grid
from vino_kernels.launching import FP8_CAPABILITY, capability_of, check_dtypes
from vino_kernels.norm_modulate.configs import GRID, Config, choose, constants


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
    """Rows program_id(0) * BLOCK_ROWS and following, in chunks of BLOCK columns. out_scale_ptr is read if QUANTISE.

    Everything is loaded before the first reduction: all warps meet there, and memory would idle while they wait.
    """
    CHUNKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    chunk = tl.arange(0, BLOCK)
    offsets = row[:, None] * WIDTH + chunk[None, :]
    # Triton's tuples grow in an unrolled loop; Python's types of them do not.
    x, scale, shift = (), (), ()
    for i in tl.static_range(CHUNKS):
        column = i * BLOCK + chunk
        mask = (row[:, None] < rows) & (column[None, :] < WIDTH)
        x += (tl.load(x_ptr + offsets + i * BLOCK, mask=mask, other=0.0).to(tl.float32),)  # type: ignore[assignment]
        scale += (tl.load(scale_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32),)  # type: ignore[assignment]
        shift += (tl.load(shift_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    factor = 1.0 / tl.load(out_scale_ptr) if QUANTISE else 1.0
    mean = tl.zeros((BLOCK_ROWS,), tl.float32)
    if not RMS:
        total = x[0]  # type: ignore[misc]
        for i in tl.static_range(1, CHUNKS):
            total += x[i]
        mean = tl.sum(total, axis=1) * (1.0 / WIDTH)
    squares = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for i in tl.static_range(CHUNKS):
        centred = tl.where((i * BLOCK + chunk < WIDTH)[None, :], x[i] - mean[:, None], 0.0)
        squares += centred * centred
    deviation = tl.rsqrt(tl.sum(squares, axis=1) * (1.0 / WIDTH) + EPS)
    for i in tl.static_range(CHUNKS):
        normed = (x[i] - mean[:, None]) * deviation[:, None]
        out = normed * (1.0 + scale[i])[None, :] + shift[i][None, :]  # type: ignore[index]
        if QUANTISE:
            out = out * factor
            # NaN stays NaN, as in the reference; what is finite must not become NaN by overflow.
            out = tl.where(out > LIMIT, LIMIT, tl.where(out < -LIMIT, -LIMIT, out))
        mask = (row[:, None] < rows) & (i * BLOCK + chunk < WIDTH)[None, :]
        tl.store(out_ptr + offsets + i * BLOCK, out.to(out_ptr.dtype.element_ty), mask=mask)


def launch(
    x: Tensor, shift: Tensor, scale: Tensor, rms: bool, out_scale: Tensor | None, config: Config | None = None
) -> Tensor:
    """Run the kernel; arguments as of `norm_modulate`. config: None for what `configs.choose` finds."""
    check_dtypes("norm_modulate", x=x, shift=shift, scale=scale)
    quantise, capability = out_scale is not None, capability_of(x)
    if quantise and capability is not None and capability < FP8_CAPABILITY:
        raise RuntimeError("norm_modulate: float8_e4m3fn takes a GPU of compute capability 8.9 or above")
    x, shift, scale = x.contiguous(), shift.contiguous(), scale.contiguous()
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if quantise else x.dtype)
    rows, width = x.shape
    config = config or choose(width, quantise=quantise, rows=rows, dtype=x.dtype, capability=capability)
    values = constants(width, rms=rms, quantise=quantise, config=config)
    torch.library.wrap_triton(norm_modulate_kernel)[grid(GRID, {"rows": rows, **values})](
        x,
        shift,
        scale,
        x if out_scale is None else out_scale,
        out,
        rows,
        **values,
        num_warps=config.warps,
    )
    return out
