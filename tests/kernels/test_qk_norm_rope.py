"""`qk_norm_rope`: the kernel against its reference and float64, the reference against the model, the gradients."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, converted, drawn
from vino_kernels.qk_norm_rope import _op, qk_norm_rope
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_ref
from vino_kernels.qk_norm_rope.triton import launch
from vino_rt.models.vino import layers, ops

THETA = 256.0
# Rows, heads, axes.
SHAPES = {
    "one_row": (1, 1, (2, 2, 2)),
    "no_row": (0, 3, (2, 2, 2)),
    "tiny_release": (13, 3, (4, 6, 6)),
    "mini": (7, 5, (8, 12, 12)),
    "head_of_64": (3, 17, (16, 24, 24)),
    "release": (3, 11, (16, 56, 56)),
    "odd_split": (5, 3, (2, 6, 14)),
    "no_time": (5, 1, (0, 4, 6)),
    "wide": (2, 3, (64, 100, 100)),
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(rows: int, heads: int, channels: int, dtype: torch.dtype) -> Inputs:
    """q, k, their weights, positions; the first row is text."""
    q, k = (drawn(rows, heads, channels, dtype=dtype, seed=seed) for seed in (1, 2))
    q_weight, k_weight = (1 + 0.3 * drawn(channels, seed=seed) for seed in (3, 4))
    positions = torch.randint(0, 150, (rows, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(5))
    positions[:1] = 0
    return q, k, q_weight.to(dtype), k_weight.to(dtype), positions


def truth(tensors: Sequence[Tensor], axes: tuple[int, int, int], theta: float) -> tuple[Tensor, Tensor]:
    *floats, positions = tensors
    q, k, q_weight, k_weight = (x.double() for x in floats)
    return qk_norm_rope_ref(q, k, q_weight, k_weight, positions, axes, theta)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "axes"), SHAPES.values(), ids=SHAPES)
def test_kernel(device: torch.device, rows: int, heads: int, axes: tuple[int, int, int], dtype: torch.dtype) -> None:
    tensors = inputs(rows, heads, sum(axes), dtype)
    reference = qk_norm_rope_ref(*tensors, axes, THETA)
    got = launch(*converted(tensors, device), axes, THETA)
    for pair in zip(got, reference, truth(tensors, axes, THETA), strict=True):
        assert_as_accurate(*pair)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_kernel_with_float32_weights(device: torch.device, dtype: torch.dtype) -> None:
    axes = (4, 6, 6)
    q, k, q_weight, k_weight, positions = inputs(5, 3, 16, dtype)
    tensors = q, k, q_weight.float() + 1e-3, k_weight, positions
    got = launch(*converted(tensors, device), axes, THETA)
    reference = qk_norm_rope_ref(*tensors, axes, THETA)
    for pair in zip(got, reference, truth(tensors, axes, THETA), strict=True):
        assert_as_accurate(*pair)


@pytest.mark.parametrize("theta", [10000.0, 3.5])
def test_kernel_far_from_the_origin(device: torch.device, theta: float) -> None:
    axes = (6, 6, 20)
    q, k, q_weight, k_weight, _ = inputs(6, 1, 32, torch.float32)
    values = [[0, 0, 0], [1, 2, 3], [-1, -2, -3], [4095, 4096, 4097], [65535, 1, 0], [0, 100000, 777]]
    tensors = q, k, q_weight, k_weight, torch.tensor(values, dtype=torch.int32)
    got = launch(*converted(tensors, device), axes, theta)
    reference = qk_norm_rope_ref(*tensors, axes, theta)
    for pair in zip(got, reference, truth(tensors, axes, theta), strict=True):
        assert_as_accurate(*pair)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    heads, channels, axes = 24, 128, (16, 56, 56)
    rows = 2**31 // (heads * channels) + 3
    needed = 5 * 2 * rows * heads * channels
    if torch.cuda.get_device_properties(0).total_memory < needed:
        pytest.skip(f"it takes {needed / 1e9:.0f} GB")
    q, k = (torch.zeros(rows, heads, channels, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    tensors = inputs(2, heads, channels, torch.bfloat16)
    q[-2:], k[-2:], q_weight, k_weight, last = converted(tensors, torch.device("cuda"))
    positions = torch.zeros(rows, 3, dtype=torch.int32, device="cuda")
    positions[-2:] = last
    got = launch(q, k, q_weight, k_weight, positions, axes, THETA)
    reference = qk_norm_rope_ref(*tensors, axes, THETA)
    for made, judge, exact in zip(got, reference, truth(tensors, axes, THETA), strict=True):
        assert_as_accurate(made[-2:], judge, exact)
        assert not made[:-2].any()


@pytest.mark.parametrize("theta", [0.5, -1.0, 1e30])
def test_powers_that_do_not_fit_are_refused(theta: float) -> None:
    with pytest.raises(ValueError, match=r"theta .*: legal is 1 to"):
        launch(*inputs(2, 1, 16, torch.float32), (4, 6, 6), theta)


@pytest.mark.parametrize("theta", [1.0, 3.5, 256.0, 10000.0, 1e9])
def test_angles_are_better_than_float32(device: torch.device, theta: float) -> None:
    """At a far position, where float32 rounds an angle of one radian a step by 2**-8: pairs (sqrt(2), 0), turned."""
    axes, far = (2, 2, 252), 100_000
    x, ones = torch.zeros(1, 1, 256), torch.ones(256)
    x[..., ::2] = 1.0
    tensors = x, x, ones, ones, torch.tensor([[far, far, far]], dtype=torch.int32)
    made, _ = launch(*converted(tensors, device), axes, theta)
    expected, _ = truth(tensors, axes, theta)
    assert (made.cpu() - expected).abs().max() < 2**-28 * far


def test_kernel_does_not_rotate_at_the_origin(device: torch.device) -> None:
    q, k, _, _, positions = inputs(3, 2, 16, torch.float32)
    ones, positions = torch.ones(16), torch.zeros_like(positions)
    got = launch(*converted((q, k, ones, ones, positions), device), (4, 6, 6), THETA)
    for out, x in zip(got, (q, k), strict=True):
        torch.testing.assert_close(out.cpu(), x * x.square().mean(-1, keepdim=True).rsqrt())


def test_kernel_takes_views(device: torch.device) -> None:
    q, k, q_weight, k_weight, positions = converted(inputs(5, 3, 16, torch.float32), device)
    fused = torch.stack((q, k), 1)
    got = launch(fused[:, 0], fused[:, 1], q_weight, k_weight, positions, (4, 6, 6), THETA)
    expected = launch(q, k, q_weight, k_weight, positions, (4, 6, 6), THETA)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_reference_is_the_model(dtype: torch.dtype) -> None:
    axes = (4, 6, 6)
    q, k, q_weight, k_weight, positions = inputs(13, 3, 16, dtype)
    cos, sin = layers.rope_table(positions, axes, THETA)
    got = qk_norm_rope(q, k, q_weight, k_weight, positions, axes, THETA)
    for out, x, weight in zip(got, (q, k), (q_weight, k_weight), strict=True):
        expected = ops.qk_norm_rope(x, weight, cos, sin)
        assert (out - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype: torch.dtype) -> None:
    axes = (2, 6, 8)
    *floats, positions = inputs(5, 3, 16, dtype)
    grads = [drawn(5, 3, 16, dtype=dtype, seed=seed) for seed in (6, 7)]

    def gradients(function: Any, cast: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(cast).requires_grad_() for x in floats]
        outs = function(*leaves, positions, axes, THETA)
        return torch.autograd.grad(outs, leaves, [grad.to(cast) for grad in grads])

    exact = gradients(qk_norm_rope_ref, torch.float64)
    for pair in zip(gradients(qk_norm_rope, torch.float64), exact, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)
    for trio in zip(gradients(qk_norm_rope, dtype), gradients(qk_norm_rope_ref, dtype), exact, strict=True):
        assert_as_accurate(*trio)


def test_registration() -> None:
    *floats, positions = inputs(5, 3, 16, torch.float32)
    torch.library.opcheck(_op, (*(x.requires_grad_() for x in floats), positions, [4, 6, 6], THETA))


@pytest.mark.parametrize("axes", [(4, 6, 8), (5, 5, 6), (8, 8), (-2, 8, 10)])
def test_axes_that_do_not_fit(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three even numbers that add up to 16"):
        qk_norm_rope(*inputs(5, 3, 16, torch.float32), axes, THETA)


def test_shapes_that_do_not_fit() -> None:
    q, k, q_weight, k_weight, positions = inputs(5, 3, 16, torch.float32)
    with pytest.raises(ValueError, match="of one shape"):
        qk_norm_rope(q, k[:, :2], q_weight, k_weight, positions, (4, 6, 6), THETA)
    with pytest.raises(ValueError, match="must be int32"):
        qk_norm_rope(q, k, q_weight, k_weight, positions.long(), (4, 6, 6), THETA)
    with pytest.raises(TypeError, match="q is torch"):
        launch(q.double(), k, q_weight, k_weight, positions, (4, 6, 6), THETA)
