"""The gated residual of AdaLN blocks: x + gate * y."""

import torch
from torch import Tensor

from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.launching import kernel_of

NAME = "vino_kernels::gated_residual"


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y for rows x, y [L, D] and gate [D]: [L, D] in x's dtype (MODEL.md section 4, AdaLN).

    The kernel computes in float32 and rounds once. Raises ValueError for shapes that do not fit.
    """
    if x.dim() != 2 or y.shape != x.shape or gate.shape != x.shape[1:]:
        shapes = f"{tuple(x.shape)}, {tuple(gate.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x, gate and y are {shapes}; must be [L, D], [D] and [L, D]")
    added: Tensor = _op(x, gate, y)
    return added


@torch.library.triton_op(NAME, mutates_args=())
def _op(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    run = gated_residual_ref if x.device.type == "cpu" else kernel_of("gated_residual")
    added: Tensor = run(x, gate, y)
    return added
