"""What the implementations compute: PyTorch's attention and FlexAttention against the reference, and the dispatcher.

On a GPU every implementation runs in every dtype it claims; on a CPU the code around PyTorch's attention does.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from tests.kernels.accuracy import assert_as_accurate
from tests.kernels.accuracy import drawn as normal
from tests.kernels.attention_cases import CASES, Case, drawn, small_tiles, tables
from vino_kernels.boundary_attention import ref
from vino_kernels.choice import OPERATIONS, Choice, Device, Needs, Shape, attention, dispatch
from vino_kernels.choice.attention import Bounds, flex, flex_mask, per_segment
from vino_kernels.choice.implementations import TMA_CAPABILITY
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.launching import FP8_CAPABILITY
from vino_kernels.norm_modulate.ref import norm_modulate_ref
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_ref

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


# The test bench asks PyTorch to warn of what may not be deterministic; its own products do so on a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*eterministic:UserWarning")


@pytest.fixture(autouse=True)
def tiles() -> Iterator[None]:
    """On a GPU the tiles that are shipped."""
    with nullcontext() if torch.cuda.is_available() else small_tiles():
        yield


def clean(case: Case, dtype: torch.dtype, channels: int = 16, device: torch.device = CPU) -> list[Tensor]:
    """q, k, v; padding holds NaN, which nobody may read."""
    tensors = drawn(case[0][-1], 2, channels, dtype, device)
    for x in tensors:
        x[case[0][-2] :] = float("nan")
    return tensors


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_views_are_the_mask(case: Case) -> None:
    bounds = Bounds.of(*tables(case, CPU))
    seen = torch.zeros(case[0][-1], case[0][-1], dtype=torch.bool)
    for rows, keys in bounds.views():
        assert not seen[rows].any(), "a row twice"
        seen[rows, keys] = True
    expected = torch.zeros_like(seen)
    for rows, sees in ref._segments(*tables(case, CPU)):
        expected[rows, rows] = sees
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("backend", [None, SDPBackend.MATH], ids=["any", "math"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_by_segment(case: Case, backend: SDPBackend | None) -> None:
    cuts = tables(case, CPU)
    q, k, v = clean(case, torch.float32)
    exact, _ = ref.forward(q.double(), k.double(), v.double(), *cuts)
    plain, _ = ref.forward(q, k, v, *cuts)
    assert_as_accurate(per_segment(q, k, v, Bounds.of(*cuts), backend), plain, exact)


@pytest.mark.parametrize("case", [case for case in CASES.values() if case[1] is None])
def test_flash_attention_with_bounds_on_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to PyTorch's operation, which a CPU does not have, and what is made of its rows."""

    def varlen(q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, most_q: int, most_k: int) -> Tensor:
        assert of_q.is_contiguous()
        assert of_q.dtype == torch.int32
        assert torch.equal(of_q, of_k)
        assert of_q.diff().max() <= most_q == most_k
        assert all(x.stride(2) == 1 for x in (q, k, v)), "FlashAttention refuses it"
        out = torch.full_like(q, float("nan"))
        for start, end in itertools.pairwise(of_q.tolist()):
            weights = torch.einsum("ihc,jhc->hij", q[start:end], k[start:end]).mul(q.shape[2] ** -0.5).softmax(-1)
            out[start:end] = torch.einsum("hij,jhc->ihc", weights, v[start:end])
        return out

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    q, k, v = clean(case, torch.float32)
    cuts = tables(case, CPU)
    exact, _ = ref.forward(q.double(), k.double(), v.double(), *cuts)
    plain, _ = ref.forward(q, k, v, *cuts)
    assert_as_accurate(attention.flash_varlen(q, k, v, cuts[0]), plain, exact)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert_as_accurate(attention.flash_varlen(apart[0], apart[1], apart[2], cuts[0]), plain, exact)


@pytest.mark.parametrize("case", [CASES[name] for name in ("odd", "empty", "isolated", "isolated_empty")])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention(case: Case) -> None:
    cuts = tables(case, CPU)
    q, k, v = drawn(case[0][-1], 2, 16, torch.float32, CPU)
    exact, _ = ref.forward(q.double(), k.double(), v.double(), *cuts)
    plain, _ = ref.forward(q, k, v, *cuts)
    assert_as_accurate(flex(q, k, v, flex_mask(case[0][-1], *cuts)), plain, exact)


def test_segments_are_counted_without_padding_and_empty_ones() -> None:
    assert Bounds((0, 3, 3, 9, 12)).segments == 2
    assert Bounds((0, 0)).segments == 0


def test_the_dispatcher_runs_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Shape, Needs]] = []

    def choose(operation: str, shape: Shape, device: Device, needs: Needs) -> Choice:
        asked.append((operation, shape, needs))
        return Choice("torch", "test")

    monkeypatch.setattr(dispatch, "choose", choose)
    cuts = tables(CASES["isolated"], CPU)
    q, k, v = clean(CASES["isolated"], torch.float32)
    out = dispatch.boundary_attention(q.requires_grad_(), k, v, *cuts)
    assert torch.equal(out, per_segment(q, k, v, Bounds.of(*cuts)))
    shape = Shape(torch.float32, 47, 16, 2, 2, "isolated")
    assert asked == [("boundary_attention", shape, Needs(gradients=True))]


def test_an_implementation_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "per_segment", lambda *arguments: pytest.fail("PyTorch's was called"))
    cuts = tables(CASES["odd"], CPU)
    q, k, v = clean(CASES["odd"], torch.float32)
    for name in ("vino", "vino_tma"):
        ours = dispatch.boundary_attention(q, k, v, *cuts, implementation=name)
        torch.testing.assert_close(ours, ref.forward(q, k, v, *cuts)[0])
    with pytest.raises(pytest.fail.Exception, match="PyTorch's was called"):
        dispatch.boundary_attention(q, k, v, *cuts, implementation="torch")
    with pytest.raises(ValueError, match="no implementation called 'magic'; there are vino, torch"):
        dispatch.boundary_attention(q, k, v, *cuts, implementation="magic")


def test_a_named_implementation_that_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.empty(5, 2, 200, dtype=torch.bfloat16, device="meta")
    gpu = Device("cuda", "Some GPU", (9, 0), frozenset({"cudnn"}))
    monkeypatch.setattr(Device, "of", lambda device: gpu)
    shape = Shape(meta.dtype, 5, 200, 2)
    with pytest.raises(ValueError, match=r"by 'sdpa_cudnn' cannot serve bfloat16, 5 rows, 2 x 200.*at most 128"):
        dispatch._resolve("boundary_attention", shape, torch.device("cuda"), Needs(), "sdpa_cudnn")


def small_inputs(
    operation: str, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    """Tensors and other arguments of an operation, at odd sizes."""
    if operation == "qk_norm_rope":
        q, k, w = normal(7, 3, 16, seed=1), normal(7, 3, 16, seed=2), normal(16, seed=3)
        both = (q, k, w, w + 1)
        rest = (torch.arange(21, dtype=torch.int32).view(7, 3).to(device), (4, 6, 6), 256.0)
        return tuple(x.to(device, dtype) for x in both), rest
    if operation == "guide_and_step":
        latents, velocity = normal(7, 5, seed=1).to(device, dtype), normal(3, 7, 5, seed=2).to(device, dtype)
        return (latents, velocity), (torch.tensor([5.0, 1.5], device=device), torch.tensor([0.1], device=device))
    x, y, z = normal(7, 37, seed=1), normal(37, seed=2), normal(37, seed=3)
    tensors = (x, y, z) if operation == "norm_modulate" else (x, y, x.flip(0))
    return tuple(t.to(device, dtype) for t in tensors), ()


def exact(operation: str, tensors: tuple[Tensor, ...], rest: tuple[object, ...]) -> tuple[Tensor, ...]:
    """The reference on these tensors."""
    if operation == "norm_modulate":
        rest = (False, None)
    refs: dict[str, Callable[..., Any]] = {
        "qk_norm_rope": qk_norm_rope_ref,
        "norm_modulate": norm_modulate_ref,
        "gated_residual": gated_residual_ref,
        "guide_and_step": guide_and_step_ref,
    }
    made = refs[operation](*tensors, *rest)
    return made if isinstance(made, tuple) else (made,)


@pytest.mark.parametrize("where", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [None, "vino", "torch"])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "boundary_attention"])
def test_small_operations(operation: str, name: str | None, dtype: torch.dtype, where: str) -> None:
    tensors, rest = small_inputs(operation, dtype, torch.device(where))
    made = getattr(dispatch, operation)(*tensors, *rest, implementation=name)
    truth = exact(operation, tuple(x.double() for x in tensors), rest)
    for got, reference, judge in zip(
        made if isinstance(made, tuple) else (made,), exact(operation, tensors, rest), truth, strict=True
    ):
        assert_as_accurate(got, reference, judge.cpu())


def test_a_quantised_norm_goes_through() -> None:
    (x, shift, scale), _ = small_inputs("norm_modulate", torch.float32, CPU)
    made = dispatch.norm_modulate(x, shift, scale, out_scale=torch.tensor([0.05]))
    assert torch.equal(made.float(), norm_modulate_ref(x, shift, scale, False, torch.tensor([0.05])).float())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_claims_gradients_has_them(operation: str) -> None:
    """Through the registered operation, which on a CPU has the same gradient as on a GPU."""
    claims = {known.name: known.gradients for known in OPERATIONS[operation]}
    if operation == "boundary_attention":
        cuts = tables(CASES["isolated"], CPU)
        q, k, v = drawn(47, 1, 16, torch.float32, CPU)
        for name in ("vino", "vino_tma"):
            out = dispatch.boundary_attention(q.requires_grad_(), k, v, *cuts, implementation=name)
            (grad,) = torch.autograd.grad(out.sum(), q)
            assert claims[name]
            assert grad.isfinite().all()
        return
    tensors, rest = small_inputs(operation, torch.float32, CPU)
    tensors[0].requires_grad_()
    for name in (name for name, claimed in claims.items() if claimed):
        made = getattr(dispatch, operation)(*tensors, *rest, implementation=name)
        (grad,) = torch.autograd.grad((made[0] if isinstance(made, tuple) else made).sum(), tensors[0])
        assert grad.isfinite().all(), name


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", [CASES[name] for name in ("odd", "empty", "one_segment", "isolated", "isolated_empty")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [24, 64, 128])
@pytest.mark.parametrize("name", [known.name for known in OPERATIONS["boundary_attention"] if not known.comparison])
def test_claims_of_attention_hold_on_this_gpu(name: str, channels: int, dtype: torch.dtype, case: Case) -> None:
    device = torch.device("cuda")
    cuts, bounds = tables(case, device), Bounds.of(*tables(case, CPU))
    q, k, v = clean(case, dtype, channels, device)
    shape = Shape(dtype, case[0][-1], channels, 2, bounds.segments, "isolated" if case[1] else "")
    known = next(known for known in OPERATIONS["boundary_attention"] if known.name == name)
    refusal = known.refusal(shape, Device.of(device), Needs())
    if refusal is not None:
        pytest.skip(refusal)
    made = dispatch.boundary_attention(q, k, v, *cuts, bounds=bounds, implementation=name)
    exact, _ = ref.forward(q.double(), k.double(), v.double(), *cuts)
    plain, _ = ref.forward(q, k, v, *cuts)
    assert_as_accurate(made, plain, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [known.name for known in OPERATIONS["boundary_attention"] if known.capture])
def test_attention_can_be_recorded_and_replayed(name: str) -> None:
    device = torch.device("cuda")
    case: Case = ([0, 70, 130, 140], None)
    cuts, bounds = tables(case, device), Bounds(tuple(case[0]))
    q, k, v = drawn(140, 2, 64, torch.bfloat16, device)
    known = next(known for known in OPERATIONS["boundary_attention"] if known.name == name)
    if refusal := known.refusal(Shape(q.dtype, 140, 64, 2, 2), Device.of(device), Needs(capture=True)):
        pytest.skip(refusal)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        expected = dispatch.boundary_attention(q, k, v, *cuts, bounds=bounds, implementation=name)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = dispatch.boundary_attention(q, k, v, *cuts, bounds=bounds, implementation=name)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "channels"),
    [(CASES["odd"], 24), (CASES["isolated"], 24), (([0, 37, 281, 300], [0, 37, 170, 281, 300]), 128)],
    ids=["odd", "isolated", "many tiles"],
)
def test_memory_every_kernel_once_attention(case: Case, channels: int) -> None:
    """Small and odd, and several tiles of full size, for the memory checker of `python -m bench gpu`."""
    device = torch.device("cuda")
    q, k, v = drawn(case[0][-1], 3, channels, torch.bfloat16, device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = dispatch.boundary_attention(q, k, v, *tables(case, device), implementation="vino")
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().sum(), leaves))
    if Device.of(device).capability >= TMA_CAPABILITY:
        made = dispatch.boundary_attention(q, k, v, *tables(case, device), implementation="vino_tma")
        assert made.isfinite().all()


@pytest.mark.gpu
def test_memory_every_kernel_once_small() -> None:
    """At odd sizes, and at those of the released model with a result in float8 where the GPU has the type."""
    device = torch.device("cuda")
    for operation in (name for name in OPERATIONS if name != "boundary_attention"):
        tensors, rest = small_inputs(operation, torch.bfloat16, device)
        made = getattr(dispatch, operation)(*tensors, *rest, implementation="vino")
        assert all(x.isfinite().all() for x in (made if isinstance(made, tuple) else (made,)))
    if Device.of(device).capability >= FP8_CAPABILITY:
        x, shift, scale = (torch.randn(*size, 3072, dtype=torch.bfloat16, device=device) for size in ((7,), (), ()))
        divisor = torch.tensor([0.05], device=device)
        quantised = dispatch.norm_modulate(x, shift, scale, out_scale=divisor, implementation="vino")
        assert quantised.float().isfinite().all()
