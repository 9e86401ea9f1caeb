"""Attention in int8 on the CPU: the compiled kernel against its reference, and that against plain attention."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.models import COMPILER
from tests.unit.models import RUNS_INT8_ATTENTION as RUNS
from vino_kernels.boundary_attention import ref
from vino_kernels.int8_attention import Library, Stream, compile_library, int8_attention, int8_joint_attention
from vino_rt.models.vino import ops

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


def streamed(lengths: Sequence[int], heads: int, channels: int) -> tuple[list[Stream], Tensor, Tensor]:
    """Streams of these lengths, and the tables of their rotation."""
    generator = torch.Generator().manual_seed(sum(lengths))
    streams = []
    for length in lengths:
        q, k, v = (torch.randn(length, heads * channels, generator=generator) for _ in range(3))
        q_weight, k_weight = (1 + 0.3 * torch.randn(channels, generator=generator) for _ in range(2))
        streams.append(Stream(3 * q, 0.2 * k, v, q_weight, k_weight))
    angles = 6 * torch.rand(sum(lengths), channels // 2, generator=generator)
    return streams, angles.cos(), angles.sin()


def table(offsets: Sequence[int]) -> Tensor:
    return torch.tensor(offsets, dtype=torch.int32)


def off_by(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).double().square().mean().sqrt() / truth.double().square().mean().sqrt())


@pytest.mark.parametrize(("rows", "heads", "channels", "offsets"), CASES[:-1])
def test_rounding_costs_two_percent(rows: int, heads: int, channels: int, offsets: Sequence[int]) -> None:
    q, k, v = drawn(rows, heads, channels)
    truth = ref.forward(q.double(), k.double(), v.double(), table(offsets))[0]
    assert off_by(int8_attention(q, k, v, table(offsets)), truth) < 0.02


def test_norm_and_rotation_are_the_model_s() -> None:
    streams, cos, sin = streamed((20, 13), 2, 12)
    order, cuts = torch.randperm(33, generator=torch.Generator().manual_seed(0)), table((0, 15, 30, 33))
    rope = ops.RopeTables(cos, sin, torch.empty(0), (12, 0, 0), 1.0)
    with ops.operations(replace(ops.PLAIN, boundary_attention=int8_attention)):
        whole = [ops.Stream(s.q, s.k, s.v, s.q_weight, s.k_weight) for s in streams]
        expected = ops.joint_attention(whole, rope, cuts, torch.stack((order, order.argsort())))
        alone = ops.joint_attention(whole[:1], rope.rows(slice(20)), table((0, 15, 20)))
    assert off_by(int8_joint_attention(streams, cos, sin, cuts, order), expected) < 1e-3
    assert off_by(int8_joint_attention(streams[:1], cos[:20], sin[:20], table((0, 15, 20)), None), alone) < 1e-3


@RUNS
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("rows", "heads", "channels", "offsets"), CASES)
def test_the_kernel_computes_what_its_reference_does(
    library: Library, rows: int, heads: int, channels: int, offsets: Sequence[int], split: bool
) -> None:
    cuts, order = table(offsets), None
    streams, cos, sin = streamed((rows // 3, rows - rows // 3) if split else (rows,), heads, channels)
    if split:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
    found = library.attend(streams, cos, sin, cuts, order, threads=2)
    expected = int8_joint_attention(streams, cos, sin, cuts, order)
    # A score at the border between two weights falls to either side: one of 255 steps of one key.
    assert off_by(found, expected) < 2e-3 or torch.equal(found, expected)
    assert torch.equal(found, library.attend(streams, cos, sin, cuts, order, threads=1))
    padding = torch.arange(offsets[-2], rows) if order is None else order[offsets[-2] :]
    assert torch.equal(found[padding], torch.zeros(len(padding), heads * channels))


@RUNS
def test_a_branch_does_not_feel_its_neighbours(library: Library) -> None:
    (first,), cos, sin = streamed((70,), 2, 64)
    (second,), more_cos, more_sin = streamed((45,), 2, 64)
    alone = library.attend([first], cos, sin, table((0, 70, 70)), None, threads=1)
    q, k, v = (torch.cat((100 * b, a)) for a, b in zip(first[:3], second[:3], strict=True))
    both = Stream(q, k, v, first.q_weight, first.k_weight)
    cos, sin = torch.cat((more_cos, cos)), torch.cat((more_sin, sin))
    assert torch.equal(library.attend([both], cos, sin, table((0, 45, 115, 115)), None, threads=2)[45:], alone)


@RUNS
@pytest.mark.parametrize("large", [0.0, 1e-15, 1e15])
def test_extreme_rows_stay_finite(library: Library, large: float) -> None:
    (drawn,), cos, sin = streamed((100,), 1, 64)
    stream, cuts = drawn._replace(q=large * drawn.q, k=large * drawn.k), table((0, 100, 100))
    found = library.attend([stream], cos, sin, cuts, None, threads=1)
    assert found.isfinite().all()
    assert off_by(found, int8_joint_attention([stream], cos, sin, cuts, None)) < 2e-3


@RUNS
def test_many_small_weights_count(library: Library) -> None:
    """One key far above the others, which together weigh as much: in steps of its weight they would be nothing.

    Those of its own block are: 63 of 1,344.
    """
    rows, channels = 1345, 64
    q, v = torch.zeros(rows, channels), torch.ones(rows, channels)
    q[:, 0] = 1.0
    k = torch.roll(q, 1, dims=1)  # across, and one key along: e^7.2 = 1,339
    k[0], v[0] = q[0], -1.0
    # A row of one number has a root mean square of an eighth of it.
    stream = Stream(q, k, v, torch.ones(channels), torch.full((channels,), 7.2 / 8))
    cos, sin = torch.ones(rows, channels // 2), torch.zeros(rows, channels // 2)
    cuts = table((0, rows, rows))
    found = library.attend([stream], cos, sin, cuts, None, threads=1)
    q, k, v = (x.double()[:, None] for x in (8 * q, 7.2 * k, v))
    truth = ref.forward(q, k, v, cuts)[0][:, 0]
    assert truth.abs().max() < 0.5
    assert float((found - truth).abs().max()) < 0.03


@RUNS
def test_what_does_not_fit_is_refused(library: Library) -> None:
    (stream,), cos, sin = streamed((8,), 2, 64)
    cuts, order = table((0, 8, 8)), torch.arange(8)
    (odd,), odd_cos, odd_sin = streamed((8,), 2, 6)
    with pytest.raises(ValueError, match="head sizes up to 256 that 4 divides, not 6"):
        library.attend([odd], odd_cos, odd_sin, cuts, None, threads=1)
    right = {"streams": [stream], "cos": cos, "sin": sin, "offsets": cuts, "order": order}
    wrong: list[dict[str, Any]] = [
        {"streams": [stream._replace(k=stream.k[:7])]},
        {"streams": [stream._replace(v=stream.v.double())]},
        {"streams": [stream._replace(q_weight=stream.q_weight[1:])]},
        {"streams": [stream, stream]},
        {"cos": cos[:7]},
        {"offsets": table((0, 8, 9))},
        {"offsets": cuts.long()},
        {"order": order[1:]},
    ]
    for given in wrong:
        with pytest.raises(ValueError, match="contiguous tables"):
            library.attend(**{**right, **given}, threads=1)
    with pytest.raises(ValueError, match="an order of rows from 0 to 7"):
        library.attend([stream], cos, sin, cuts, order + 1, threads=1)


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
