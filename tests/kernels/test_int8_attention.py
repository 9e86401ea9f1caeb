"""Attention in int8 on the CPU: the compiled kernel against its reference, and that against plain attention."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.unit.models import COMPILER
from tests.unit.models import RUNS_INT8_ATTENTION as RUNS
from vino_kernels.boundary_attention import ref
from vino_kernels.int8_attention import Library, compile_library, int8_attention

# Length, heads, channels of a head, offsets.
CASES = [
    (1, 1, 4, (0, 1, 1)),
    (40, 1, 20, (0, 40, 40)),
    (77, 3, 48, (0, 50, 77, 77)),
    (90, 2, 256, (0, 90, 90, 90, 90)),
    (300, 2, 128, (0, 1, 170, 170, 290, 300)),
    (333, 4, 64, (0, 333, 333)),
    (12, 2, 64, (0, 0, 0, 12)),
]


@pytest.fixture(scope="module")
def library() -> Library:
    assert COMPILER is not None
    return Library(compile_library(COMPILER))


def drawn(rows: int, heads: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, heads, channels, generator=generator) for _ in range(3))
    return 1.5 * q, k, v


def table(offsets: Sequence[int]) -> Tensor:
    return torch.tensor(offsets, dtype=torch.int32)


def off_by(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).double().square().mean().sqrt() / truth.double().square().mean().sqrt())


@pytest.mark.parametrize(("rows", "heads", "channels", "offsets"), CASES[:-1])
def test_rounding_costs_two_percent(rows: int, heads: int, channels: int, offsets: Sequence[int]) -> None:
    q, k, v = drawn(rows, heads, channels)
    truth = ref.forward(q.double(), k.double(), v.double(), table(offsets))[0]
    assert off_by(int8_attention(q, k, v, table(offsets)), truth) < 0.02


@RUNS
@pytest.mark.parametrize(("rows", "heads", "channels", "offsets"), CASES)
def test_the_kernel_computes_what_its_reference_does(
    library: Library, rows: int, heads: int, channels: int, offsets: Sequence[int]
) -> None:
    given, cuts = drawn(rows, heads, channels), table(offsets)
    found, expected = library.attend(*given, cuts, threads=2), int8_attention(*given, cuts)
    # A score at the border between two weights falls to either side: one of 255 steps of one key.
    assert off_by(found, expected) < 1e-3 or torch.equal(found, expected)
    assert torch.equal(found, library.attend(*given, cuts, threads=1))
    assert torch.equal(found[offsets[-2] :], torch.zeros(rows - offsets[-2], heads, channels))


@RUNS
def test_a_branch_does_not_feel_its_neighbours(library: Library) -> None:
    first, second = drawn(70, 2, 64), drawn(45, 2, 64, seed=1)
    alone = library.attend(*first, table((0, 70, 70)), threads=1)
    q, k, v = (torch.cat((100 * b, a)) for a, b in zip(first, second, strict=True))
    assert torch.equal(library.attend(q, k, v, table((0, 45, 115, 115)), threads=2)[45:], alone)


@RUNS
@pytest.mark.parametrize("large", [0.0, 1e-30, 1e4])
def test_extreme_rows_stay_finite(library: Library, large: float) -> None:
    q, k, v = drawn(100, 1, 64)
    q, k, cuts = large * q, large * k, table((0, 100, 100))
    found = library.attend(q, k, v, cuts, threads=1)
    truth = ref.forward(q.double(), k.double(), v.double(), cuts)[0]
    assert found.isfinite().all()
    # With 1e4 a row looks at one key: rounded scores may prefer the next best.
    assert off_by(found, truth) < (0.02 if large < 1 else 0.5)


@RUNS
def test_many_small_weights_count(library: Library) -> None:
    """One key far above the others, which together weigh as much: in steps of its weight they would be nothing.

    Those of its own block are: 63 of 1,344.
    """
    rows, channels = 1345, 64
    q, k, v = torch.zeros(rows, 1, channels), torch.zeros(rows, 1, channels), torch.ones(rows, 1, channels)
    q[:, :, 0], k[0, :, 0] = 8.0, 7.2  # e^7.2 = 1,339
    v[0] = -1.0
    found = library.attend(q, k, v, table((0, rows, rows)), threads=1)
    truth = ref.forward(q.double(), k.double(), v.double(), table((0, rows, rows)))[0]
    assert float((found - truth).abs().max()) < 0.03


@RUNS
def test_what_does_not_fit_is_refused(library: Library) -> None:
    q, k, v = drawn(8, 2, 64)
    cuts = table((0, 8, 8))
    with pytest.raises(ValueError, match="head sizes up to 256 that 4 divides, not 6"):
        library.attend(q[..., :6], k[..., :6], v[..., :6], cuts, threads=1)
    for given in ((q, k[:7], v, cuts), (q, k, v.double(), cuts), (q, k, v, table((0, 8, 9))), (q, k, v, cuts.long())):
        with pytest.raises(ValueError, match="contiguous q, k, v"):
            library.attend(*given, threads=1)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER is not None
    monkeypatch.setattr("vino_kernels.int8_attention.library.FLAGS", ("--no-such-flag",))
    with pytest.raises(RuntimeError, match=r"cannot compile cpu.cpp: .*no-such-flag"):
        compile_library(COMPILER)


@RUNS
def test_bytes_that_are_no_library_are_refused(library: Library) -> None:
    assert library
    with pytest.raises(OSError, match=r"file too short|invalid ELF header"):
        Library(b"no library")
