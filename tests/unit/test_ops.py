"""The hot operations against formulas written another way, in float64: dense masks, complex rotations."""

import math

import pytest
import torch
from torch import Tensor

from vino_rt.models.vino.layers import NORM_EPS, gelu, rope_table
from vino_rt.models.vino.ops import _alike, boundary_attention, norm_modulate, qk_norm_rope

ULPS = 16 * 2.0**-23
"""Rounding of float32 relative to the largest value: a dot product of some dozens of terms and its softmax."""
AXES, THETA = (4, 6, 6), 256.0


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, offsets: list[int]) -> Tensor:
    """Attention over all rows at once with a mask of who sees whom, in float64."""
    segment = torch.zeros(q.shape[0], dtype=torch.int64)
    for start in offsets[1:-1]:
        segment[start:] += 1
    padding = torch.arange(q.shape[0]) >= offsets[-2]
    sees = (segment[:, None] == segment[None]) & ~padding[None]
    scores = torch.einsum("ihc,jhc->hij", q.double(), k.double()) / math.sqrt(q.shape[-1])
    weights = torch.where(sees, scores.exp(), torch.zeros(()).double())
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights / total, torch.zeros(()).double())
    return torch.einsum("hij,jhc->ihc", weights, v.double().nan_to_num())


SEGMENTS = {
    "three_and_padding": [0, 13, 20, 37, 43],
    "one": [0, 17, 17, 17, 17],
    "empty_between": [0, 5, 5, 18, 23],
    "one_token": [0, 1, 1, 1, 1],
    "one_token_each": [0, 1, 2, 3, 4],
    "only_padding": [0, 0, 0, 0, 7],
    "long_tail": [0, 3, 3, 3, 29],
    "nothing": [0, 0, 0, 0, 0],
    "many_empty": [0, 0, 0, 0, 0, 0, 0, 3],
}


@pytest.mark.parametrize("offsets", SEGMENTS.values(), ids=SEGMENTS)
def test_boundary_attention_equals_a_dense_mask(offsets: list[int]) -> None:
    q, k, v = (drawn(offsets[-1], 3, 10 + i)[..., :10] for i in range(3))
    q[offsets[-2] :], k[offsets[-2] :], v[offsets[-2] :] = (float("nan"),) * 3
    out = boundary_attention(q, k, v, torch.tensor(offsets, dtype=torch.int32))
    expected = dense_attention(q.nan_to_num(), k.nan_to_num(), v, offsets)
    expected[offsets[-2] :] = 0
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert (out.double() - expected).abs().amax().item() <= 1e-6 if out.numel() else True
    assert torch.equal(out[offsets[-2] :], torch.zeros_like(out[offsets[-2] :])), "padding must come out as zero"


def test_boundary_attention_depends_on_the_offsets() -> None:
    q, k, v = (drawn(12, 2, size)[..., :8] for size in (8, 9, 10))
    one, two = ([0, 12, 12, 12, 12], [0, 7, 12, 12, 12])
    outs = [boundary_attention(q, k, v, torch.tensor(offsets, dtype=torch.int32)) for offsets in (one, two)]
    assert (outs[0] - outs[1]).abs().max() > 0.1
    assert (dense_attention(q, k, v, one) - dense_attention(q, k, v, two)).abs().max() > 0.1


def complex_rope(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """RMSNorm, then channel pairs as complex numbers times e^(i angle), in float64."""
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + NORM_EPS).sqrt() * weight.double()
    angles = []
    for axis, size in enumerate(AXES):
        angles += [positions[:, axis].double() / THETA ** (2 * i / size) for i in range(size // 2)]
    rope = torch.polar(torch.ones(()).double(), torch.stack(angles, -1))[:, None]
    pairs = torch.view_as_complex(normed.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * rope).flatten(-2)


@pytest.mark.parametrize(("rows", "heads"), [(1, 1), (13, 3), (37, 5), (0, 2)])
def test_qk_norm_rope_equals_complex_rotation(rows: int, heads: int) -> None:
    x, weight = 5 * drawn(rows, heads, sum(AXES)), 1 + drawn(sum(AXES)) / 3
    positions = torch.randint(0, 31, (rows, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    out = qk_norm_rope(x, weight, *rope_table(positions, AXES, THETA))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    expected = complex_rope(x, weight, positions)
    # An angle of 30 is itself known to 2e-6 in float32.
    limit = (ULPS + 30 * 2.0**-23) * max(1.0, expected.abs().max().item() if rows else 0.0)
    assert not rows or (out.double() - expected).abs().max().item() <= limit


def test_position_zero_is_no_turn() -> None:
    x, weight = drawn(3, 2, 16), torch.ones(16)
    rope = rope_table(torch.zeros(3, 3, dtype=torch.int32), AXES, THETA)
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS)
    assert torch.equal(qk_norm_rope(x, weight, *rope), normed)


def test_bfloat16_is_cast_between_norm_and_turn() -> None:
    x, weight = drawn(7, 3, 16).bfloat16(), (1 + drawn(16) / 3).bfloat16()
    cos, sin = rope_table(torch.arange(21, dtype=torch.int32).reshape(7, 3), AXES, THETA)
    wide = x.float()
    normed = ((wide / (wide.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()).bfloat16() * weight).float()
    even, odd = normed[..., ::2], normed[..., 1::2]
    expected = torch.empty(7, 3, 16)
    expected[..., ::2], expected[..., 1::2] = (
        even * cos[:, None] - odd * sin[:, None],
        odd * cos[:, None] + even * sin[:, None],
    )
    out = qk_norm_rope(x, weight, cos, sin)
    assert out.dtype == torch.bfloat16
    # One unit of bfloat16 where 1 / sqrt and rsqrt round to either side.
    assert ((out.float() - expected.bfloat16().float()).abs() <= 2.0**-7 * expected.abs() + 1e-6).all()
    assert (out == expected.bfloat16()).float().mean() > 0.95


@pytest.mark.parametrize("name", ["qk_norm_rope", "boundary_attention"])
def test_exported_nodes_are_the_eager_bodies(name: str) -> None:
    rows, inputs = 23, dict[str, tuple[Tensor, ...]]()
    cos, sin = rope_table(torch.arange(3 * rows, dtype=torch.int32).reshape(rows, 3), AXES, THETA)
    inputs["qk_norm_rope"] = (drawn(rows, 3, 16), drawn(16), cos, sin)
    offsets = torch.tensor([0, 7, 7, 18, 23], dtype=torch.int32)
    inputs["boundary_attention"] = (*(drawn(rows, 3, 16 + i)[..., :16].contiguous() for i in range(3)), offsets)
    node = getattr(torch.ops.vino, name).default
    eager = {"qk_norm_rope": qk_norm_rope, "boundary_attention": boundary_attention}[name]
    assert torch.equal(node(*inputs[name]), eager(*inputs[name]))
    torch.library.opcheck(node, inputs[name], test_utils=("test_schema", "test_faketensor"))


def test_norm_modulate_against_its_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    x, shift, scale = (torch.randn(size, generator=generator) for size in ((7, 33), (33,), (33,)))
    wide = x.double()
    normed = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, unbiased=False, keepdim=True) + NORM_EPS).sqrt()
    expected = normed * (1 + scale.double()) + shift.double()
    assert (norm_modulate(x, shift, scale) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("lengths", [[7, 1, 40, 0, 9, 8, 12, 3], [5] * 6, [0, 0, 0, 0, 0, 2]])
def test_many_segments_of_any_length_equal_a_dense_mask_with_their_gradients(lengths: list[int]) -> None:
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    offsets.append(offsets[-1] + 3)
    q, k, v = given = [drawn(offsets[-1], 3, 10 + i)[..., :10].requires_grad_() for i in range(3)]
    other_q, other_k, other_v = twin = [x.detach().clone().requires_grad_() for x in given]
    weight = drawn(offsets[-2], 3, 10)
    out = boundary_attention(q, k, v, torch.tensor(offsets, dtype=torch.int32))
    expected = dense_attention(other_q, other_k, other_v, offsets)
    assert torch.equal(out[offsets[-2] :], torch.zeros_like(out[offsets[-2] :]))
    assert torch.allclose(out[: offsets[-2]].double(), expected[: offsets[-2]], atol=1e-6)
    torch.autograd.backward((out[: offsets[-2]] * weight).sum())
    torch.autograd.backward((expected[: offsets[-2]] * weight).sum())
    for mine, theirs in zip(given, twin, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)


def test_segments_share_a_call_with_those_of_like_length() -> None:
    lengths = [30, 0, 21, 10, 14, 0, 11, 15]
    groups = _alike(lengths)
    assert sorted(number for group in groups for number in group) == [0, 2, 3, 4, 6, 7]
    assert groups == [[3, 6, 4], [7, 2], [0]]


def test_gelu_is_the_tanh_form_but_in_bfloat16_training_on_a_cpu() -> None:
    x = torch.linspace(-6, 6, 4001, requires_grad=True)
    tanh, exact = (torch.nn.functional.gelu(x, approximate=form) for form in ("tanh", "none"))
    assert 0 < (tanh - exact).abs().max() < 5e-4
    assert torch.equal(gelu(x), tanh)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gelu(x), exact)
        with torch.no_grad():
            assert torch.equal(gelu(x), tanh)
