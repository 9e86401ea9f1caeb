"""The benchmark of kernels: what it counts, that wrong results are not timed, what is required, the table it writes.

On the CPU it is run as a whole; on a GPU, too, at small sizes. Times are made up here: nothing was measured.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from bench import __main__ as command
from bench import kernels
from bench.harness import Timing
from bench.kernels_cases import Case, Prepared, Series, all_series, attention, draw, memory_bound, prepare
from bench.kernels_check import attended, chosen_rows, share, shares
from bench.kernels_rows import Report, called, compare, compare_copy, compare_isolated, compare_packed, entry, time_rows
from bench.kernels_time import Best, HostClock, Probes
from vino_kernels.boundary_attention import ref
from vino_kernels.choice import OPERATIONS, Device, Shape, Table, read_table, render

CPU = torch.device("cpu")
GPU = Device("cuda", "Some GPU", (9, 0), frozenset({"triton", "flash", "cudnn"}))
FIELDS = {"bench", "case", "metric", "value", "unit", "spread", "ceiling", "machine", "versions", "commit"}
BEST = Best(3e12, {torch.bfloat16: 6e14})


def small(branches: int = 1, *, isolated: bool = False) -> Case:
    return attention(40, branches, heads=2, channels=16, dtype=torch.float32, isolated=isolated)


def timed(case: Case, **seconds: float) -> dict[str, Timing]:
    """Made-up timings of a case by implementation; `_apart` behind a name: a call for each branch."""
    return {
        called(case, name.removesuffix("_apart"), apart=name.endswith("_apart")): Timing((taken, taken))
        for name, taken in seconds.items()
    }


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_command_runs_on_a_cpu_and_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_gpu(monkeypatch)
    assert command.main(["kernels", "--quick", "--json"]) == 0
    told = capsys.readouterr()
    assert "kernels were not measured" in told.err
    rows: list[dict[str, Any]] = [json.loads(line) for line in told.out.splitlines()]
    assert all(set(row) == FIELDS and row["bench"] == "kernels" for row in rows)
    assert {row["case"].split(", ")[0] for row in rows} == {"cpu"}
    assert not [row for row in rows if "vino" in row["case"]]
    times = [row for row in rows if row["metric"] == "time"]
    assert {row["case"].split(", ")[1] for row in times} == set(OPERATIONS)
    assert all(row["unit"] == "us" and row["spread"]["runs"] == 3 for row in times)
    assert {row["ceiling"]["what"] for row in times} == {
        "at the measured matrix rate",
        "at the measured copy bandwidth",
    }
    assert all(row["value"] <= 1 for row in rows if row["metric"].startswith("error"))


def test_a_table_takes_a_gpu_and_real_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    no_gpu(monkeypatch)
    monkeypatch.setattr(kernels, "PATH", tmp_path / "table.json")
    assert command.main(["kernels", "--write-table"]) == 2
    assert "--write-table takes a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_series_is_begun_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    options = argparse.Namespace(write_table=False, no_flex=True, seconds=-1.0)
    (row,) = kernels.run(quick=True, options=options).measures
    assert (row.case, row.metric, row.value) == ("cpu, small", "cases left out for lack of time", 8)


def test_the_sizes_that_were_asked_for() -> None:
    series = all_series(GPU, quick=False)
    shapes = [case.shape for one in series for case in one.cases if case.operation == "boundary_attention"]
    bf16 = torch.bfloat16
    for rows, channels, segments, variant in [
        (35_000, 128, 1, ""), (35_000, 128, 1, "isolated"), (105_000, 128, 3, ""), (4_800, 128, 3, ""),
        (1_600, 128, 1, ""), (1_600, 64, 1, ""), (35_000, 64, 1, ""),
    ]:  # fmt: skip
        assert Shape(bf16, rows, channels, 24, segments, variant) in shapes
    assert {shape.dtype for shape in shapes} == {bf16, torch.float16, torch.float32}
    for operation in ("qk_norm_rope", "norm_modulate"):
        found = {c.shape.rows for one in series for c in one.cases if c.operation == operation}
        assert found == {1_600, 35_000}
    older = all_series(replace(GPU, capability=(8, 0)), quick=False)
    assert not any(case.shape.variant == "fp8" for one in older for case in one.cases)


def test_pairs_tiles_and_bytes_are_counted() -> None:
    assert small(3).pairs == 3 * 40 * 40
    # Four references of six rows see themselves, the other sixteen rows see all forty.
    assert small(isolated=True).pairs == 4 * 6 * 6 + 16 * 40
    assert small(isolated=True).flops == 4 * 16 * 2 * (4 * 36 + 640)
    long, alone = attention(35_000), attention(35_000, isolated=True)
    assert long.visible_tiles(9) == 274 * 547
    assert alone.visible_tiles(9) == 4 * 42 * 83 + 110 * 547
    moved = {case.operation: case.moved for case in memory_bound(10, 2, 48, torch.bfloat16, fp8=False)}
    assert moved == {
        "qk_norm_rope": 4 * 960 * 2 + 120,
        "norm_modulate": 2 * 960 * 2 + 2 * 96 * 2,
        "gated_residual": 3 * 960 * 2 + 96 * 2,
        "guide_and_step": 640 * (2 * 4 + 3 * 2),
    }


@pytest.mark.parametrize("isolated", [False, True])
def test_judged_rows_are_those_of_the_reference(isolated: bool) -> None:
    case = small(3, isolated=isolated)
    q, k, v, *tables = draw(case, CPU)
    rows = chosen_rows(120, case.bounds, CPU)
    assert {0, 39, 40, 119} <= set(rows.tolist())
    for wide in (False, True):
        given = [x.double() if wide else x for x in (q, k, v)]
        whole, _ = ref.forward(given[0], given[1], given[2], tables[0], tables[1] if isolated else None)
        torch.testing.assert_close(attended(q, k, v, case.bounds, rows, wide=wide), whole[rows], rtol=1e-5, atol=1e-6)


def test_a_wrong_output_is_over_one_and_nan_is_infinite() -> None:
    exact = torch.linspace(-1, 1, 9, dtype=torch.float64)
    plain = exact.to(torch.bfloat16)
    assert share(plain, plain, exact) < 1
    assert share(plain + 0.1, plain, exact) > 1
    assert share(torch.full_like(plain, torch.nan), plain, exact) == float("inf")


@pytest.mark.parametrize("name", ["vino", "vino_tma", "sdpa_flash"])
def test_what_is_wrong_is_not_timed(name: str) -> None:
    made = prepare(small(3), CPU)
    case, right = made.case, made.calls["torch"]
    wrong = Prepared(case, made.inputs, {"torch": right, name: lambda: right() + 0.1}, {name: right})
    report = Report()
    assert set(kernels.right_calls(wrong, report)) == {called(case, "torch")}
    assert {row.case for row in report.measures if row.value > 1} == {called(case, name)}
    assert len(report.failures) == (name != "sdpa_flash")


def test_a_kernel_that_does_not_compile_ends_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    no_gpu(monkeypatch)
    monkeypatch.setattr(kernels, "measure", refuse)
    outcome = kernels.run(quick=True, options=argparse.Namespace(write_table=False, no_flex=True, seconds=60.0))
    assert [text.partition(": out of")[0] for text in outcome.failures] == ["small: OutOfResources"]


def test_a_claim_that_does_not_hold_is_a_failure() -> None:
    made = prepare(small(), CPU)

    def refuse() -> None:
        raise RuntimeError("No available kernel")

    report = Report()
    found = kernels.right_calls(replace(made, calls={**made.calls, "sdpa_cudnn": refuse}), report)
    assert set(found) == {called(small(), "torch")}
    assert "sdpa_cudnn says that it can serve this and does not: No available kernel" in report.failures[0]


def test_quantised_rows_are_judged() -> None:
    case = next(c for c in memory_bound(40, 2, 48, torch.bfloat16, fp8=True) if c.shape.variant == "fp8")
    made = prepare(case, CPU)
    good = made.calls["torch"]()
    assert good.dtype == torch.float8_e4m3fn
    found = shares(case, made.inputs, {"good": good, "bad": (good.float() * 2).to(good.dtype)})
    assert found["good"] <= 1 < found["bad"]


def test_time_stands_beside_the_ceiling() -> None:
    case = attention(35_000)
    made = Prepared(case, (), {"vino": lambda: None}, {})
    seconds = case.flops / 6e14
    rows = {row.metric: row for row in time_rows(made, timed(case, vino=2 * seconds), BEST)}
    assert rows["time"].value == pytest.approx(2e6 * seconds)
    assert rows["time"].ceiling is not None
    assert rows["time"].ceiling.value == pytest.approx(1e6 * seconds)
    assert rows["share"].value == pytest.approx(50)


def missed(case: Case, times: dict[str, Timing], table: Table) -> list[str]:
    report = Report()
    compare(case, times, GPU, table, report)
    return report.failures


def test_attention_is_held_against_pytorchs_own() -> None:
    case = attention(35_000)
    assert not missed(case, timed(case, vino=1.0, sdpa_flash=1.2, sdpa_cudnn=1.1), Table())
    slow = timed(case, vino=1.04, sdpa_flash=1.2, sdpa_cudnn=1.0)
    (told,) = missed(case, slow, Table())
    assert told.endswith("sdpa_cudnn / dispatcher (vino) is 96.15 %; required: at least, within the spread 100 %")
    assert len(missed(case, timed(case, vino=1.1, sdpa_flash=1.2, sdpa_cudnn=1.0), Table())) == 2
    (told,) = missed(case, timed(case, vino=1.1, vino_tma=0.9, sdpa_cudnn=1.0), Table())
    assert "dispatcher (vino) is 90.91 %" in told, "the faster of our two counts; it is chosen once it is in the table"
    made = Prepared(case, (), dict.fromkeys(("vino", "sdpa_flash", "sdpa_cudnn"), lambda: None), {})
    table = Table((entry(made, slow, GPU, ({"torch": "1"}, "abc")),))
    assert not missed(case, slow, table)


def test_a_kernel_that_is_not_there_is_a_failure() -> None:
    case = attention(1_600)
    assert missed(case, timed(case, sdpa_flash=1.0), Table()) == [f"{case.label}: our kernel was not timed"]


@pytest.mark.parametrize(("seconds", "met"), [(1 / 0.86, True), (1 / 0.84, False)])
def test_memory_is_held_against_the_copy(seconds: float, met: bool) -> None:
    case = memory_bound(1_600, 24, 128, torch.bfloat16, fp8=False)[0]
    report = Report()
    compare_copy(case, timed(case, vino=seconds * case.moved / 3e12), BEST, report)
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
    part = alone.visible_tiles(9) / full.visible_tiles(9)
    report = Report()
    compare_isolated([full, alone], timed(full, vino=1.0) | timed(alone, vino=part * off), 9, report)
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


def test_probes_give_rates_of_known_work() -> None:
    probes = Probes(CPU, (torch.float32,), 16, 4096)
    timings = HostClock().interleave(probes.calls(), repeats=2)
    fixed = {name: Timing((0.5, 0.5)) for name in timings}
    best = probes.best(fixed)
    assert best.bandwidth == 2 * 4096 / 0.5
    assert best.rates == {torch.float32: 2 * 16**3 / 0.5}


def test_a_series_on_a_gpu_from_check_to_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played on the CPU: every implementation is PyTorch's, the device only says that it is a GPU."""
    names = [known.name for known in OPERATIONS["boundary_attention"]]

    def played(case: Case, device: object, *, with_flex: bool) -> Prepared:
        made = prepare(case, CPU)
        given = dict.fromkeys(names if case.flops else ("vino", "torch"), made.calls["torch"])
        return replace(made, calls=given, apart=dict.fromkeys(given, made.apart["torch"]) if made.apart else {})

    monkeypatch.setattr(kernels, "prepare", played)
    monkeypatch.setattr(kernels, "Probes", lambda device, dtypes, side, size: Probes(CPU, dtypes, 16, 4096))
    monkeypatch.setattr(Device, "of", lambda device: GPU)
    series = Series(
        "played", (small(), small(isolated=True), small(3), *memory_bound(40, 2, 48, torch.float32, fp8=False))
    )
    report = Report()
    kernels.measure(series, SimpleNamespace(type="cuda"), HostClock(), report, quick=False, with_flex=True)  # type: ignore[arg-type]
    read = read_table(render(Table(tuple(report.entries))), "measured")
    assert len(read.entries) == len(series.cases)
    assert {*read.entries[0].microseconds} == set(names)
    metrics = {row.metric for row in report.measures}
    assert {"a call for each branch / packed, vino", "time in proportion to visible tiles, vino"} <= metrics
    assert any(metric.endswith("/ dispatcher (vino)") for metric in metrics)
    assert not [text for text in report.failures if "was not timed" in text]


@pytest.mark.gpu
def test_the_command_runs_on_this_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["kernels", "--quick", "--json"]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["machine"]["gpu"] for row in rows} == {torch.cuda.get_device_name(0)}
    timed_names = {row["case"].rpartition(", ")[2] for row in rows if row["metric"] == "time"}
    assert {"vino", "torch"} <= timed_names
