"""Kernels in TensorRT's order of arguments compute what the operations' references say, launched by the same rules.

In the interpreter; that TensorRT's own layer comes to these grids, is compared in tests/tensorrt/family.
"""

from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, drawn
from tests.kernels.attention_cases import small_tiles
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


@pytest.mark.parametrize("tactic", declare.PLUGINS["BoundaryAttention"].tactics)
@pytest.mark.parametrize("cuts", [[0, 17, 17, 40, 47], [0, 41, 41, 41, 41]], ids=["padded", "whole"])
def test_boundary_attention(cuts: list[int], tactic: int) -> None:
    dtype, offsets = torch.float32, torch.tensor(cuts, dtype=torch.int32)
    q, k, v = (drawn(cuts[-1], HEADS, CHANNELS, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    with small_tiles():
        run("BoundaryAttention", (q, k, v, offsets), (out, lse), tactic)
    plain = attention_ref.forward(q, k, v, offsets, None)
    exact = attention_ref.forward(q.double(), k.double(), v.double(), offsets, None)
    for got, judge, truth in zip((out, lse), plain, exact, strict=True):
        assert_as_accurate(got, judge, truth)


def test_a_type_that_no_kernel_has() -> None:
    x, table = declare.Tensor("bfloat16", (3, 2, 8)), declare.Tensor("bfloat16", (3, 4))
    with pytest.raises(ValueError, match="QkNormRope: x, weight, cos and sin are"):
        declare.qk_norm_rope(90, 0, x, declare.Tensor("bfloat16", (8,)), table, table)
