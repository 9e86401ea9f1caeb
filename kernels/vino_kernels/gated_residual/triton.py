"""The Triton kernel of `gated_residual`: one program for a tile of rows and columns."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vino_kernels.gated_residual.configs import GRID, Config, choose, constants
from vino_kernels.grid import grid
from vino_kernels.launching import capability_of, check_dtypes


@triton.jit(do_not_specialize=["rows"])
def gated_residual_kernel(
    x_ptr,
    gate_ptr,
    y_ptr,
    out_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Tile (program_id(0), program_id(1)) of rows and columns."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row[:, None] < rows) & (column[None, :] < WIDTH)
    offsets = row[:, None] * WIDTH + column[None, :]
    gate = tl.load(gate_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, (x + gate[None, :] * y).to(out_ptr.dtype.element_ty), mask=mask)


def launch(x: Tensor, gate: Tensor, y: Tensor, config: Config | None = None) -> Tensor:
    """Run the kernel; arguments as of `gated_residual`. config: None for what `configs.choose` finds."""
    check_dtypes("gated_residual", x=x, gate=gate, y=y)
    x, gate, y = x.contiguous(), gate.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    rows, width = x.shape
    config = config or choose(width, rows, x.dtype, capability_of(x))
    values = constants(width, config)
    torch.library.wrap_triton(gated_residual_kernel)[grid(GRID, {"rows": rows, **values})](
        x, gate, y, out, rows, **values, num_warps=config.warps
    )
    return out
