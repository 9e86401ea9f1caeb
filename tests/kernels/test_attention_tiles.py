"""Attention with the tiles that are shipped, over many tiles of long segments: results and all gradients.

The other tests have tiles of 16 rows, or segments that fit one tile. A tile of keys that is lost changes a mean over
35,000 random rows too little to be seen; over a few hundred rows it is seen, and here every row is judged.
"""

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import assert_as_accurate
from tests.kernels.attention_cases import Case, drawn, tables
from tests.kernels.test_boundary_attention_grad import pulled, through_ref
from vino_kernels.boundary_attention import boundary_attention, configs, launch, ref
from vino_kernels.boundary_attention.launch import launch_forward, launch_tma

# Segments begin and end inside tiles; the longest is several tiles of every size. The last segment is padding.
CASES: dict[str, Case] = {
    "segments": ([0, 129, 300, 812, 900], None),
    "one_long": ([0, 1100, 1100], None),
    "isolated": ([0, 640, 1011, 1100], [0, 70, 333, 640, 700, 1011, 1100]),
}
SMALL_CASE: Case = ([0, 33, 300, 311], [0, 33, 163, 300, 311])
INTERPRETED = [*((major, torch.float16) for major in (8, 9, 10, 12)), (9, torch.float32)]
HEADS = 2


def compare(case: Case, channels: int, dtype: torch.dtype, device: torch.device, *, tma: bool, heads: int) -> None:
    """out, lse and three gradients against the reference; padding holds NaN, which nobody may read."""
    rows, used = case[0][-1], case[0][-2]
    inputs, cuts = drawn(rows, heads, channels, dtype, device), tables(case, device)
    grads = pulled(rows, used, inputs[0])
    wide = [x.double() for x in inputs]
    exact = (*ref.forward(wide[0], wide[1], wide[2], *cuts), *through_ref(wide, cuts, grads))
    plain = (*ref.forward(inputs[0], inputs[1], inputs[2], *cuts), *through_ref(inputs, cuts, grads))
    level = plain[1][:used].abs().max().item()
    for x in inputs:
        x[used:] = float("nan")
    leaves = [x.requires_grad_() for x in inputs]
    results = boundary_attention(leaves[0], leaves[1], leaves[2], *cuts, tma=tma)
    made = (*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads))
    for number, (one, other, judge) in enumerate(zip(made, plain, exact, strict=True)):
        assert number == 1 or torch.equal(one[used:], torch.zeros_like(one[used:]))
        assert_as_accurate(one, other, judge, level if number > 1 else 0.0)


@pytest.fixture(params=["short", "long"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which tiles: those of the length that the sequences have, or those of long ones."""
    if request.param == "long":
        monkeypatch.setattr(configs, "length_of", lambda rows: "long")
    return str(request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("tma", [False, True], ids=["plain", "tma"])
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("length")
def test_on_this_gpu(case: Case, dtype: torch.dtype, channels: int, tma: bool) -> None:
    if tma and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU copies no tiles by hardware")
    compare(case, channels, dtype, torch.device("cuda"), tma=tma, heads=HEADS)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("kernel", ["forward", "tma"])
def test_candidates_on_this_gpu(kernel: str, channels: int) -> None:
    """Every tile that `bench tiles` may choose, on GPUs that have room for all of them."""
    major, minor = torch.cuda.get_device_capability()
    if (kernel == "tma" and major < 9) or minor or major == 12:
        pytest.skip("this GPU copies no tiles by hardware, or its shared memory does not hold all of these")
    device, run = torch.device("cuda"), launch_tma if kernel == "tma" else launch_forward
    q, k, v = drawn(1100, HEADS, channels, torch.bfloat16, device)
    cuts = tables(CASES["isolated"], device)
    plain, exact = ref.forward(q, k, v, *cuts), ref.forward(q.double(), k.double(), v.double(), *cuts)
    for tile in configs.candidates(kernel, channels, torch.bfloat16, major):
        for one, other, judge in zip(run(q, k, v, *cuts, tile), plain, exact, strict=True):
            assert_as_accurate(one, other, judge)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter needs a process without a GPU")
@pytest.mark.parametrize("tma", [False, True], ids=["plain", "tma"])
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize(("major", "dtype"), INTERPRETED, ids=str)
def test_in_the_interpreter(
    major: int, dtype: torch.dtype, channels: int, tma: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tiles for long sequences on GPUs of each major compute capability."""
    monkeypatch.setattr(launch, "capability_of", lambda q: (major, 0))
    monkeypatch.setattr(configs, "length_of", lambda rows: "long")
    if tma and (major < 9 or configs.tma_tile(channels, dtype, 1, major) == configs.tma_tile(channels, dtype, 1)):
        pytest.skip("there is no tile of its own")
    compare(SMALL_CASE, channels, dtype, torch.device("cpu"), tma=tma, heads=1)


@pytest.mark.gpu
def test_results_beyond_two_to_the_31() -> None:
    """So many heads that the last rows of every tensor begin behind 2**31 elements."""
    rows, heads, channels = 257, 65_535, 128
    needed = 10 * 2 * rows * heads * channels
    if torch.cuda.get_device_properties(0).total_memory < needed:
        pytest.skip(f"it takes {needed / 1e9:.0f} GB")
    assert rows * heads * channels > 2**31
    cuda = torch.device("cuda")
    offsets = torch.tensor([0, rows, rows], dtype=torch.int32, device=cuda)
    q, k, v = (torch.randn(rows, heads, channels, dtype=torch.bfloat16, device=cuda) for _ in range(3))
    grads = torch.randn_like(q), torch.zeros(rows, heads, device=cuda)
    out, lse = launch_forward(q, k, v, offsets)
    made = (out, lse, *launch.launch_backward(grads, (q, k, v), (out, lse), offsets))
    some = [x[:, -3:] for x in (q, k, v)]
    pull = grads[0][:, -3:], grads[1][:, -3:]
    plain = *ref.forward(some[0], some[1], some[2], offsets), *through_ref(some, (offsets, None), pull)
    wide: list[Tensor] = [x.double() for x in some]
    exact = *ref.forward(wide[0], wide[1], wide[2], offsets), *through_ref(wide, (offsets, None), pull)
    level = plain[1].abs().max().item()
    for number, (one, other, judge) in enumerate(zip(made, plain, exact, strict=True)):
        assert_as_accurate(one[:, -3:], other, judge, level if number > 1 else 0.0)
