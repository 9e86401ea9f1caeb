"""`norm_modulate`: the kernel against its reference and float64, the reference against the model."""

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, converted, drawn
from vino_kernels.norm_modulate import _op, norm_modulate
from vino_kernels.norm_modulate.ref import FP8_MAX, norm_modulate_ref
from vino_kernels.norm_modulate.triton import launch
from vino_rt.models.vino import ops

# Rows, width.
SHAPES = {
    "one_row": (1, 48),
    "no_row": (0, 48),
    "odd": (13, 37),
    "one_column": (5, 1),
    "mini": (9, 160),
    "rows_in_pairs": (5, 999),
    "release": (3, 3072),
    "widest": (2, 4100),
    "chunks_of_two_sizes": (3, 2100),
}


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, shift, scale; x is off centre, as activations are."""
    x = 2 * drawn(rows, width, seed=1) + 0.5
    return x.to(dtype), drawn(width, dtype=dtype, seed=2), (0.5 * drawn(width, seed=3)).to(dtype)


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES.values(), ids=SHAPES)
def test_kernel(device: torch.device, rows: int, width: int, dtype: torch.dtype, rms: bool) -> None:
    tensors = inputs(rows, width, dtype)
    got = launch(*converted(tensors, device), rms, None)
    truth = norm_modulate_ref(*converted(tensors, torch.float64), rms, None)
    assert_as_accurate(got, norm_modulate_ref(*tensors, rms, None), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_scale", [0.05, 0.0037])
def test_kernel_quantises(device: torch.device, dtype: torch.dtype, out_scale: float) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8_e4m3fn")
    tensors, divisor = inputs(7, 61, dtype), torch.tensor([out_scale])
    got = launch(*converted(tensors, device), False, divisor.to(device))
    truth = (norm_modulate_ref(*converted(tensors, torch.float64), False, None) / out_scale).clamp(-FP8_MAX, FP8_MAX)
    reference = norm_modulate_ref(*tensors, False, divisor)
    assert got.dtype == torch.float8_e4m3fn
    assert (truth.abs() == FP8_MAX).any().item() == (out_scale == 0.0037), "one case saturates, the other does not"
    assert_as_accurate(got, reference, truth)
    # The rule is loose for small values of so coarse a type: all but a few at the edge of rounding must be the nearest.
    assert (got.cpu().float() != truth.to(torch.float8_e4m3fn).float()).double().mean() < 0.01


def test_kernel_with_float32_modulation(device: torch.device) -> None:
    x, shift, scale = inputs(5, 37, torch.bfloat16)
    tensors = x, shift.float() + 1e-3, scale.float()
    got = launch(*converted(tensors, device), False, None)
    truth = norm_modulate_ref(*converted(tensors, torch.float64), False, None)
    assert_as_accurate(got, norm_modulate_ref(*tensors, False, None), truth)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    width = 3072
    rows = 2**31 // width + 3
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    last, shift, scale = inputs(2, width, torch.bfloat16)
    x[-2:] = last
    got = launch(x, torch.zeros(width, device="cuda"), scale.to("cuda"), False, None)
    zeros = torch.zeros_like(shift)
    truth = norm_modulate_ref(*converted((last, zeros, scale), torch.float64), False, None)
    assert_as_accurate(got[-2:], norm_modulate_ref(last, zeros, scale, False, None), truth)
    assert not got[:-2].any()


def test_kernel_keeps_to_its_rows(device: torch.device) -> None:
    x, shift, scale = converted(inputs(5, 37, torch.float32), device)
    x[2] = float("nan")
    nan = launch(x, shift, scale, False, None).isnan().any(1).cpu()
    assert nan.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_is_the_model(dtype: torch.dtype) -> None:
    x, shift, scale = inputs(7, 48, dtype)
    assert torch.equal(norm_modulate(x, shift, scale), ops.norm_modulate(x, shift, scale))


@pytest.mark.parametrize("out_scale", [None, torch.tensor([0.02])], ids=["plain", "quantised"])
def test_registration(out_scale: Tensor | None) -> None:
    torch.library.opcheck(_op, (*inputs(5, 37, torch.float32), False, out_scale))


def test_shapes_that_do_not_fit() -> None:
    x, shift, scale = inputs(5, 37, torch.float32)
    with pytest.raises(ValueError, match=r"must be \[L, D\]"):
        norm_modulate(x, shift[:-1], scale)
    with pytest.raises(ValueError, match="one element"):
        norm_modulate(x, shift, scale, out_scale=torch.ones(2))
    with pytest.raises(TypeError, match="x is torch"):
        launch(x.double(), shift, scale, False, None)
