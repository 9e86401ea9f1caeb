"""Kernels in TensorRT's order of arguments compute what the operations' references say, launched by the same rules.

In the interpreter; that TensorRT's own layer comes to these grids, is compared in tests/tensorrt/family.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, drawn
from tests.kernels.attention_cases import SMALL
from vino_kernels.boundary_attention import ref as attention_ref
from vino_kernels.grid import grid
from vino_kernels.norm_modulate.ref import norm_modulate_ref
from vino_kernels.plugins import declare
from vino_kernels.plugins import triton as kernels
from vino_rt.models.vino.ops import qk_norm_rope

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter needs a process without a GPU")
ROWS, HEADS, CHANNELS = 13, 3, 10


def run(plugin: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], tactic: int = 0) -> None:
    """Launch as TensorRT does: inputs, numbers, outputs; the grid from the rules."""
    shown = [declare.Tensor(str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in inputs]
    variant = declare.PLUGINS[plugin].variant(90, tactic, *shown)
    names = declare.launch_names(variant, inputs[0].shape[0])
    given: dict[str, Any] = dict(variant.constants)
    tensors = iter((*inputs, *outputs))
    given |= {a.name: next(tensors) if a.is_tensor else names[a.name] for a in variant.arguments}
    if "WIDEN" in given:
        given["WIDEN"] = inputs[0].dtype == torch.bfloat16
    kernel = getattr(kernels, variant.kernel)
    assert not isinstance(kernel, triton.JITFunction)
    kernel[grid(variant.grid, names)](**given)
    assert next(tensors, None) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_modulate(dtype: torch.dtype) -> None:
    x, shift, scale = (drawn(*shape, dtype=dtype, seed=3) for shape in ((ROWS, 30), (30,), (30,)))
    out = torch.empty_like(x)
    run("NormModulate", (x, shift, scale), (out,))
    truth = norm_modulate_ref(x.double(), shift.double(), scale.double(), False, None)
    assert_as_accurate(out, norm_modulate_ref(x, shift, scale, False, None), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope(dtype: torch.dtype) -> None:
    x, weight = drawn(ROWS, HEADS, CHANNELS, dtype=dtype, seed=1), drawn(CHANNELS, dtype=dtype, seed=2)
    angle = drawn(ROWS, CHANNELS // 2, dtype=torch.float32, seed=4)
    out = torch.empty_like(x)
    run("QkNormRope", (x, weight, angle.cos(), angle.sin()), (out,))
    truth = qk_norm_rope(x.double(), weight.double(), angle.double().cos(), angle.double().sin())
    assert_as_accurate(out, qk_norm_rope(x, weight, angle.cos(), angle.sin()), truth)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 rows, so that a few dozen rows are several tiles; the second owns twice as many."""
    tiles = SMALL, replace(SMALL, own=2 * SMALL.own)
    monkeypatch.setattr(declare, "TILES", dict.fromkeys(declare.TILES, tiles))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("tactic", declare.PLUGINS["BoundaryAttention"].tactics)
@pytest.mark.parametrize("cuts", [[0, 17, 17, 40, 47], [0, 41, 41, 41, 41]], ids=["padded", "whole"])
def test_boundary_attention(cuts: list[int], tactic: int) -> None:
    dtype, offsets = torch.float32, torch.tensor(cuts, dtype=torch.int32)
    q, k, v = (drawn(cuts[-1], HEADS, CHANNELS, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    run("BoundaryAttention", (q, k, v, offsets), (out, lse), tactic)
    plain = attention_ref.forward(q, k, v, offsets, None)
    exact = attention_ref.forward(q.double(), k.double(), v.double(), offsets, None)
    for got, judge, truth in zip((out, lse), plain, exact, strict=True):
        assert_as_accurate(got, judge, truth)


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of x inside of a larger tensor of NaN, and that tensor."""
    whole = torch.full((3 * x.shape[0], *x.shape[1:]), float("nan"))
    part = whole[x.shape[0] : 2 * x.shape[0]]
    part.copy_(x)
    return part, whole


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("seed", range(6))
def test_attention_stays_within_its_rows_whatever_the_offsets(seed: int) -> None:
    """TensorRT runs a kernel on arbitrary numbers while it builds; an illegal access would end the process's CUDA."""
    rows, generator = 47, torch.Generator().manual_seed(seed)
    limit = 2**31 if seed % 2 else 2 * rows
    offsets = torch.randint(-limit, limit, (5,), generator=generator, dtype=torch.int64).to(torch.int32)
    q, k, v = (guarded(drawn(rows, HEADS, CHANNELS, dtype=torch.float32, seed=n))[0] for n in (1, 2, 3))
    out, around = guarded(torch.zeros_like(q))
    lse, around_lse = guarded(torch.zeros(q.shape[:2]))
    run("BoundaryAttention", (q, k, v, offsets), (out, lse), tactic=1 + seed % 2)
    for part, whole in ((out, around), (lse, around_lse)):
        assert whole[:rows].isnan().all()
        assert whole[2 * rows :].isnan().all()
        assert not part.isnan().any(), "no row outside of the tensors was read"
    cleaned = offsets.clamp(0, rows)
    cleaned[0] = 0
    cleaned = cleaned.cummax(0).values.to(torch.int32)
    last = int(cleaned[-1])
    expected, _ = attention_ref.forward(q[:last], k[:last], v[:last], cleaned, None)
    torch.testing.assert_close(out[:last], expected, rtol=1e-5, atol=1e-5)
    assert not out[last:].any(), "rows of no segment are not written"


def test_a_head_that_no_tile_has() -> None:
    wide, offsets = declare.Tensor("bfloat16", (None, 2, 300)), declare.Tensor("int32", (5,))
    with pytest.raises(ValueError, match="300 channels of a head, at most 256"):
        declare.boundary_attention(90, 1, wide, wide, wide, offsets)


def test_a_type_that_no_kernel_has() -> None:
    x, table = declare.Tensor("bfloat16", (3, 2, 8)), declare.Tensor("bfloat16", (3, 4))
    with pytest.raises(ValueError, match="QkNormRope: x, weight, cos and sin are"):
        declare.qk_norm_rope(90, 0, x, declare.Tensor("bfloat16", (8,)), table, table)
