"""Rows, requirements and table entries of `bench kernels`, from times that are made up."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import kernels
from bench.harness import Timing
from bench.kernels_cases import Case, Prepared, attention, memory_bound
from bench.kernels_rows import (
    Report,
    called,
    compare,
    compare_copy,
    compare_dispatcher,
    compare_isolated,
    compare_packed,
    entry,
    time_rows,
)
from bench.kernels_time import Best
from vino_kernels.choice import Device, Table, read_table

GPU = Device("cuda", "Some GPU", (9, 0), frozenset({"triton", "flash", "cudnn"}))
OPERATION_NAMES = ("vino", "vino_tma", "torch", "sdpa_flash", "sdpa_cudnn", "flash_varlen")
SMALL_COPY = 2e12
"""Bytes a second of a copy as small as what is held against it; the large one is faster."""


def best(case: Case) -> Best:
    return Best(3e12, {torch.bfloat16: 6e14}, {case.moved: SMALL_COPY})


def timed(case: Case, **seconds: float) -> dict[str, Timing]:
    """Made-up timings of a case by implementation; `_apart` behind a name: a call for each branch."""
    return {
        called(case, name.removesuffix("_apart"), apart=name.endswith("_apart")): Timing((taken, taken))
        for name, taken in seconds.items()
    }


def test_time_stands_beside_the_ceiling() -> None:
    case = attention(35_000)
    made = Prepared(case, (), {"vino": lambda: None}, {})
    seconds = case.flops / 6e14
    rows = {row.metric: row for row in time_rows(made, timed(case, vino=2 * seconds), best(case))}
    assert rows["time"].value == pytest.approx(2e6 * seconds)
    assert rows["time"].ceiling is not None
    assert rows["time"].ceiling.value == pytest.approx(1e6 * seconds)
    assert rows["share"].value == pytest.approx(50)


def missed(case: Case, times: dict[str, Timing], table: Table | None = None) -> list[str]:
    """Failures of a case; of its dispatcher, too, with a table or the one that is made of these times."""
    report, made = Report(), Prepared(case, (), dict.fromkeys(OPERATION_NAMES, lambda: None), {})
    measured = Table((entry(made, times, GPU, ({"torch": "1"}, "abc")),))
    compare(case, times, report)
    compare_dispatcher(case, times, GPU, measured if table is None else table, report)
    return report.failures


def test_attention_is_held_against_pytorchs_own() -> None:
    case = attention(35_000)
    assert not missed(case, timed(case, vino=1.0, sdpa_flash=1.2, sdpa_cudnn=1.1))
    slow = timed(case, vino=1.1, sdpa_flash=1.2, sdpa_cudnn=1.0)
    required, as_called = missed(case, slow)
    assert required.endswith("sdpa_cudnn / vino is 90.91 %; required: at least 95 %")
    assert "sdpa_cudnn / dispatcher as the model calls it (vino) is 90.91 %" in as_called
    assert not missed(case, timed(case, vino=1.1, vino_tma=0.9, sdpa_cudnn=1.0)), "the faster of our two counts"


def test_the_dispatcher_is_held_against_pytorchs_own_with_a_table() -> None:
    """As a program calls it that knows the bounds, and as the model does, whose bounds lie on the device."""
    case = attention(35_000)
    close = timed(case, vino=1.04, sdpa_flash=1.2, sdpa_cudnn=1.0, flash_varlen=1.02)
    without = missed(case, close, Table())
    assert [text.partition(": ")[2].partition(" is ")[0] for text in without] == [
        "sdpa_cudnn / dispatcher (vino)", "sdpa_cudnn / dispatcher as the model calls it (vino)",
    ]  # fmt: skip
    (told,) = missed(case, close)
    assert "sdpa_cudnn / dispatcher as the model calls it (flash_varlen) is 98.04 %" in told
    assert not missed(case, timed(case, vino=1.04, sdpa_cudnn=1.1, flash_varlen=1.0))


def test_a_kernel_that_is_not_there_is_a_failure() -> None:
    case = attention(1_600)
    found = missed(case, timed(case, sdpa_flash=1.0), Table())
    assert found[0] == f"{case.label}: our kernel was not timed"
    assert found[1] == f"{case.label}: the dispatcher takes vino, which was not timed"


@pytest.mark.parametrize(("seconds", "met"), [(1 / 0.86, True), (1 / 0.84, False)])
def test_memory_is_held_against_the_copy(seconds: float, met: bool) -> None:
    case = memory_bound(1_600, 24, 128, torch.bfloat16, fp8=False)[0]
    report = Report()
    compare_copy(case, timed(case, vino=seconds * case.moved / SMALL_COPY), best(case), report)
    assert (not report.failures) == met


@pytest.mark.parametrize(("apart", "met"), [(3.1, True), (2.9, False)])
def test_packed_branches_are_held_against_calls_for_each(apart: float, met: bool) -> None:
    case = attention(35_000, 3)
    report = Report()
    compare_packed(case, timed(case, vino=3.0, vino_apart=apart, sdpa_cudnn_apart=2.0), report)
    assert (not report.failures) == met
    assert [row.metric for row in report.measures][1:] == ["a call for each branch by sdpa_cudnn / packed, vino"]


@pytest.mark.parametrize(("off", "met"), [(1.09, True), (0.91, True), (1.12, False), (0.88, False)])
def test_isolated_references_are_held_against_their_tiles(off: float, met: bool) -> None:
    full, alone = attention(35_000), attention(35_000, isolated=True)
    part = alone.visible_tiles((9, 0)) / full.visible_tiles((9, 0))
    report = Report()
    compare_isolated([full, alone], timed(full, vino=1.0) | timed(alone, vino=part * off), (9, 0), report)
    assert (not report.failures) == met
    assert report.measures[-1].value == pytest.approx(off)


def test_the_table_is_written_whole_and_other_entries_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    made = {rows: Prepared(attention(rows), (), {"vino": lambda: None}, {}) for rows in (1_600, 35_000)}
    origin = {"torch": "2.13.0"}, "abc"
    first, second = (entry(work, timed(work.case, vino=1e-3 * rows), GPU, origin) for rows, work in made.items())
    kernels.write_table(Table((second,)), path)
    kernels.write_table(Table((first, replace(second, commit="new"))), path)
    read = read_table(path.read_text(encoding="utf-8"), "written")
    assert [(e.rows, e.commit) for e in read.entries] == [(2048, "abc"), (32_768, "new")]
    assert read.entries[0].microseconds["vino"].median == 1.6e6
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_table_begins_as_the_packaged_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = {rows: Prepared(attention(rows), (), {"vino": lambda: None}, {}) for rows in (1_600, 35_000)}
    known, new = (entry(work, timed(work.case, vino=1e-3), GPU, ({}, "abc")) for work in made.values())
    monkeypatch.setattr(kernels, "packaged", lambda: Table((known,)))
    kernels.write_table(Table((new,)), tmp_path / "table.json")
    read = read_table((tmp_path / "table.json").read_text(encoding="utf-8"), "written")
    assert [e.rows for e in read.entries] == [2048, 32_768]
