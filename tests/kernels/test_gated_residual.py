"""`gated_residual`: the kernel against its reference and float64; addresses beyond 2^31 on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, converted, drawn
from vino_kernels.gated_residual import _op, gated_residual
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.gated_residual.triton import launch

SHAPES = {
    "one_row": (1, 48),
    "no_row": (0, 48),
    "odd": (37, 37),
    "narrow": (35, 1),
    "mini": (9, 160),
    "wide": (6, 1111),
}


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, gate, y."""
    x, y = (drawn(rows, width, dtype=dtype, seed=seed) for seed in (1, 3))
    return x, drawn(width, dtype=dtype, seed=2), y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES.values(), ids=SHAPES)
def test_kernel(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    tensors = inputs(rows, width, dtype)
    got = launch(*converted(tensors, device))
    assert_as_accurate(got, gated_residual_ref(*tensors), gated_residual_ref(*converted(tensors, torch.float64)))


def test_kernel_with_a_float32_gate(device: torch.device) -> None:
    x, gate, y = inputs(5, 37, torch.bfloat16)
    tensors = x, gate.float() + 1e-3, y
    got = launch(*converted(tensors, device))
    assert_as_accurate(got, gated_residual_ref(*tensors), gated_residual_ref(*converted(tensors, torch.float64)))


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    width = 3072
    rows = 2**31 // width + 3
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    y, gate = torch.zeros_like(x), torch.full((width,), 2.0, dtype=torch.bfloat16, device="cuda")
    x[-1], y[-1] = 1.0, 3.0
    out = gated_residual(x, gate, y)
    assert (out[-1] == 7.0).all()
    assert not out[:-1].any()


def test_registration() -> None:
    torch.library.opcheck(_op, inputs(5, 37, torch.float32))


def test_shapes_that_do_not_fit() -> None:
    x, gate, y = inputs(5, 37, torch.float32)
    with pytest.raises(ValueError, match=r"must be \[L, D\]"):
        gated_residual(x, gate, y[:-1])
    with pytest.raises(TypeError, match="x is torch"):
        launch(x.double(), gate, y)
