"""`boundary_attention` against its reference in float64: the kernel in the interpreter, or compiled on a GPU."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import assert_as_accurate
from tests.kernels.attention_cases import CASES, Case, drawn, small_tiles, tables
from vino_kernels.boundary_attention import boundary_attention, launch, merge, op, ref
from vino_kernels.boundary_attention.launch import launch_forward, launch_tma

FORMATS = [
    (16, torch.float16),
    (24, torch.float32),
    (24, torch.bfloat16),
    (64, torch.float16),
    (64, torch.bfloat16),
    (128, torch.float32),
    (128, torch.bfloat16),
]


@pytest.fixture(autouse=True)
def tiles() -> Iterator[None]:
    with small_tiles():
        yield


@pytest.fixture(params=[False, True], ids=["plain", "tma"])
def tma(request: pytest.FixtureRequest) -> bool:
    """By which of the two kernels."""
    return bool(request.param)


def dense(q: Tensor, k: Tensor, v: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """One row and head after the other, from a list of the rows it sees."""
    offsets, groups = case[0], case[1] or case[0]
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], float("-inf"), dtype=q.dtype)
    for row, head in itertools.product(range(offsets[-2]), range(q.shape[1])):
        start, end = next((a, b) for a, b in itertools.pairwise(offsets) if a <= row < b)
        first, last = next((a, b) for a, b in itertools.pairwise(groups) if a <= row < b)
        seen = slice(start, end) if last == end else slice(first, last)
        scores = k[seen, head] @ q[row, head] / q.shape[2] ** 0.5
        out[row, head] = scores.exp() @ v[seen, head] / scores.exp().sum()
        lse[row, head] = scores.exp().sum().log()
    return out, lse


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_reference_is_what_the_words_say(case: Case) -> None:
    q, k, v = (x.double() for x in drawn(case[0][-1], 2, 6, torch.float32, torch.device("cpu")))
    for made, expected in zip(ref.forward(q, k, v, *tables(case, q.device)), dense(q, k, v, case), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_segments(case: Case, tma: bool, device: torch.device) -> None:
    """Padding holds NaN, which nobody may read; `torch.empty` holds NaN, so that every row must be written."""
    q, k, v = drawn(case[0][-1], 1, 16, torch.float32, device)
    cuts = tables(case, device)
    exact = ref.forward(q.double(), k.double(), v.double(), *cuts)
    plain = ref.forward(q, k, v, *cuts)
    for x in (q, k, v):
        x[case[0][-2] :] = float("nan")
    made = boundary_attention(q, k, v, *cuts, tma=tma)
    assert torch.equal(made[0][case[0][-2] :], torch.zeros_like(made[0][case[0][-2] :]))
    assert made[1].dtype == torch.float32
    for one, other, judge in zip(made, plain, exact, strict=True):
        assert_as_accurate(one, other, judge)


@pytest.mark.parametrize(("channels", "dtype"), FORMATS, ids=str)
def test_formats(channels: int, dtype: torch.dtype, tma: bool, device: torch.device) -> None:
    q, k, v = drawn(23, 2, channels, dtype, device)
    cuts = tables(([0, 19, 23], [0, 4, 19, 23]), device)
    exact = ref.forward(q.double(), k.double(), v.double(), *cuts)
    made, plain = boundary_attention(q, k, v, *cuts, tma=tma), ref.forward(q, k, v, *cuts)
    assert made[0].dtype == dtype
    for one, other, judge in zip(made, plain, exact, strict=True):
        assert_as_accurate(one, other, judge)


def test_a_reference_is_alone(tma: bool, device: torch.device) -> None:
    """NaN in one reference reaches the target and the text and no other reference, no other segment."""
    cuts = tables(([0, 30, 36, 36], [0, 7, 20, 30, 36, 36]), device)
    q, k, v = drawn(36, 1, 16, torch.float32, device)
    before, _ = boundary_attention(q, k, v, *cuts, tma=tma)
    k[7:20] = v[7:20] = float("nan")
    after, _ = boundary_attention(q, k, v, *cuts, tma=tma)
    assert torch.equal(after[:7], before[:7])
    assert torch.equal(after[30:], before[30:])
    assert after[20:30].isnan().all()


def test_nan_is_told(tma: bool, device: torch.device) -> None:
    """What a row saw of NaN stands in its log-sum-exp, too."""
    cuts = tables(([0, 40, 50, 52], None), device)
    q, k, v = drawn(52, 1, 16, torch.float32, device)
    k[3] = float("nan")
    out, lse = boundary_attention(q, k, v, *cuts, tma=tma)
    assert out[:40].isnan().all()
    assert lse[:40].isnan().all()
    assert lse[40:50].isfinite().all()


@pytest.mark.parametrize("run", [launch_forward, launch_tma])
def test_no_rows_are_not_launched(
    run: Callable[..., tuple[Tensor, Tensor]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no address of which the hardware could make a descriptor."""
    for name in ("forward_kernel", "tma_kernel", "queries_kernel", "keys_kernel"):
        monkeypatch.setattr(launch, name, None)
    q = torch.empty(0, 2, 16, device=device)
    offsets, _ = tables(([0, 0, 0], None), device)
    out, lse = run(q, q, q, offsets)
    assert out.shape == (0, 2, 16)
    assert lse.shape == (0, 2)
    assert all(grad.shape == q.shape for grad in launch.launch_backward((q, lse), (q, q, q), (out, lse), offsets))


def test_descriptors_take_aligned_memory_alone() -> None:
    """Memory from elsewhere may begin anywhere, with an offset of zero."""
    buffer = bytearray(4 * 16 + 64)
    begin = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    aligned, uneven = (
        torch.frombuffer(buffer, dtype=torch.float32, count=16, offset=-begin % 16 + shift).view(1, 1, 16)
        for shift in (0, 4)
    )
    assert uneven.storage_offset() == 0
    assert launch._described(aligned) is aligned
    assert launch._described(uneven).data_ptr() % 16 == 0
    assert torch.equal(launch._described(uneven), uneven)


def test_strides(tma: bool, device: torch.device) -> None:
    """q, k and v side by side in one tensor, channels apart in another: the same bytes."""
    cuts = tables(([0, 17, 19], None), device)
    q, k, v = drawn(19, 2, 16, torch.float32, device)
    expected, _ = boundary_attention(q, k, v, *cuts, tma=tma)
    packed = torch.stack((q, k, v), 1)
    assert torch.equal(boundary_attention(packed[:, 0], packed[:, 1], packed[:, 2], *cuts, tma=tma)[0], expected)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(boundary_attention(apart[0], apart[1], apart[2], *cuts, tma=tma)[0], expected)
    uneven = torch.empty(19 * 2 * 16 + 1, device=device)[1:].view(19, 2, 16).copy_(v)
    assert torch.equal(boundary_attention(q, k, uneven, *cuts, tma=tma)[0], expected)


def test_addresses_beyond_32_bits(tma: bool, device: torch.device) -> None:
    """Rows 2**29 elements apart; the memory between them is never touched, so it costs nothing on a CPU."""
    q, k, v = drawn(6, 1, 16, torch.float16, device)
    cuts = tables(([0, 5, 6], None), device)
    storage = torch.UntypedStorage(2 * (5 * 2**29 + 16), device=device)  # type: ignore[no-untyped-call]
    far = torch.tensor([], dtype=torch.float16, device=device).set_(storage, 0, (6, 1, 16), (2**29, 16, 1))
    far.copy_(k)
    assert torch.equal(boundary_attention(q, far, v, *cuts, tma=tma)[0], boundary_attention(q, k, v, *cuts, tma=tma)[0])


def test_heads_that_descriptors_do_not_take() -> None:
    q = torch.zeros(4, 1, 18, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"head size 18 in torch\.float16: .* whole 16 bytes"):
        launch_tma(q, q, q, torch.tensor([0, 4, 4], dtype=torch.int32))


def test_merge_of_two_halves() -> None:
    cpu = torch.device("cpu")
    q, k, v = drawn(20, 2, 8, torch.float32, cpu)
    out, lse = ref.forward(q, k, v, *tables(([0, 20, 20], None), cpu))
    halves = []
    for half in (slice(0, 9), slice(9, 20)):
        scores = torch.einsum("ihc,jhc->ihj", q, k[half]) / 8**0.5
        halves += [torch.einsum("ihj,jhc->ihc", scores.softmax(-1), v[half]), scores.logsumexp(-1)]
    merged = merge(halves[0], halves[1], halves[2], halves[3])
    torch.testing.assert_close(merged, (out, lse))


def test_merge_with_rows_that_saw_nothing() -> None:
    nothing, unseen = torch.zeros(2, 1, 4), torch.full((2, 1), float("-inf"))
    out, lse = torch.ones(2, 1, 4, requires_grad=True), torch.tensor([[1.5], [float("-inf")]], requires_grad=True)
    merged, level = merge(nothing, unseen, out, lse)
    assert torch.equal(level, lse)
    assert torch.equal(merged[0], out[0])
    assert torch.equal(merged[1], nothing[1])
    grads = torch.autograd.grad(merged.sum() + level[0].sum(), (out, lse))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("wrong", ["shape", "dtype", "table", "head"])
def test_refuses(wrong: str) -> None:
    q = torch.zeros(4, 1, 512 if wrong == "head" else 8, dtype=torch.float64 if wrong == "dtype" else torch.float32)
    offsets = torch.tensor([0, 4, 4], dtype=torch.int64 if wrong == "table" else torch.int32)
    with pytest.raises(ValueError, match=r"must be|legal is"):
        boundary_attention(q, q[:3] if wrong == "shape" else q, q, offsets)


def test_a_cpu_without_interpreter_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "interpreted", lambda: False)
    cpu = torch.device("cpu")
    q, k, v = drawn(54, 2, 8, torch.bfloat16, cpu)
    cuts = tables(CASES["odd"], cpu)
    assert torch.equal(boundary_attention(q, k, v, *cuts)[0], ref.forward(q, k, v, *cuts)[0])
