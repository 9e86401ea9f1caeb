"""Gradients of `boundary_attention` against autograd through its reference, and what PyTorch asks of an operation."""

from collections.abc import Iterator
from contextvars import copy_context

import pytest
import torch
import triton
from torch import Tensor

from tests.kernels.accuracy import assert_as_accurate
from tests.kernels.attention_cases import CASES, Case, drawn, small_tiles, tables
from vino_kernels.boundary_attention import boundary_attention, op, ref

TRACED = ("test_schema", "test_autograd_registration", "test_faketensor")
TRIED = ("odd", "many", "isolated", "isolated_padding_cut", "all_padding")


@pytest.fixture(autouse=True)
def tiles() -> Iterator[None]:
    with small_tiles():
        yield


def pulled(rows: int, used: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of out and lse: something in every row of out, zero in the padding rows of lse."""
    generator = torch.Generator().manual_seed(rows)
    grad_out = torch.randn(x.shape, generator=generator).to(x)
    grad_lse = torch.randn(x.shape[:2], generator=generator).to(x.device)
    grad_lse[used:] = 0
    return grad_out, grad_lse


def through_ref(
    inputs: list[Tensor], cuts: tuple[Tensor, Tensor | None], grads: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = ref.forward(leaves[0], leaves[1], leaves[2], *cuts)
    if not results[0].requires_grad:  # Nothing but padding: out is a constant.
        return tuple(torch.zeros_like(x) for x in inputs)
    pull = [grad.to(result.dtype) for grad, result in zip(grads, results, strict=True)]
    return torch.autograd.grad(results, leaves, pull)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_knows_its_gradient(name: str) -> None:
    case = CASES[name]
    q, k, v = (x.double() for x in drawn(case[0][-1], 2, 6, torch.float32, torch.device("cpu")))
    cuts = tables(case, q.device)
    grad_out, grad_lse = pulled(case[0][-1], case[0][-2], q)
    made = ref.backward((grad_out, grad_lse.double()), (q, k, v), ref.forward(q, k, v, *cuts), *cuts)
    torch.testing.assert_close(made, through_ref([q, k, v], cuts, (grad_out, grad_lse)), rtol=1e-10, atol=1e-10)


def compare(case: Case, channels: int, dtype: torch.dtype, device: torch.device) -> None:
    rows, used = case[0][-1], case[0][-2]
    inputs, cuts = drawn(rows, 1, channels, dtype, device), tables(case, device)
    grads = pulled(rows, used, inputs[0])
    exact = through_ref([x.double() for x in inputs], cuts, grads)
    plain = through_ref(inputs, cuts, grads)
    _, lse = ref.forward(inputs[0], inputs[1], inputs[2], *cuts)
    level = max(lse[:used].abs().flatten().tolist(), default=0.0)
    for x in inputs:
        x[used:] = float("nan")
    leaves = [x.requires_grad_() for x in inputs]
    made = torch.autograd.grad(boundary_attention(leaves[0], leaves[1], leaves[2], *cuts), leaves, grads)
    for one, other, judge in zip(made, plain, exact, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one[used:], torch.zeros_like(one[used:]))
        assert_as_accurate(one, other, judge, level)


@pytest.mark.parametrize("name", TRIED)
def test_segments(name: str, device: torch.device) -> None:
    compare(CASES[name], 16, torch.float32, device)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(24, torch.float16), (64, torch.bfloat16), (128, torch.bfloat16)], ids=str
)
def test_formats(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    compare(([0, 19, 22], [0, 4, 19, 22]), channels, dtype, device)


def check_operations(device: torch.device) -> None:
    checks = TRACED if op.interpreted() else (*TRACED, "test_aot_dispatch_dynamic")
    q, k, v = (x.requires_grad_() for x in drawn(19, 1, 16, torch.float32, device))
    offsets, groups = tables(([0, 12, 17, 19], [0, 4, 12, 17, 19]), device)
    # A traced kernel is launched outside of `launch_tma`; PyTorch's compiler sets whom to ask for memory, too.
    triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8, device=device))
    for cuts in ((offsets, None), (offsets, groups)):
        for tma in (False, True):
            torch.library.opcheck(op.forward, (q, k, v, *cuts, tma), test_utils=checks)
    out, lse = (x.detach() for x in boundary_attention(q, k, v, offsets, groups))
    inputs = [x.detach() for x in (q, k, v)]
    torch.library.opcheck(op.backward, (out, lse, *inputs, out, lse, offsets, groups), test_utils=checks)


def test_operation_is_well_formed(device: torch.device) -> None:
    """The two operations, with groups and without; tracing their kernels needs compiled ones."""
    copy_context().run(check_operations, device)


def test_export_keeps_one_node() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            return boundary_attention(x, x, x, offsets)[0]

    offsets, _ = tables(([0, 5, 7], None), torch.device("cpu"))
    program = torch.export.export(Attention(), (torch.randn(7, 1, 16), offsets))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("vino_kernels.boundary_attention.default") == 1
