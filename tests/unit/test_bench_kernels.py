"""The benchmark of kernels: what it counts and how it times, and that wrong results are not timed.

On the CPU it is run as a whole; on a GPU, too, at small sizes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from bench import __main__ as command
from bench import kernels
from bench.harness import Measure, Timing
from bench.kernels_cases import Case, Prepared, Series, all_series, attention, draw, memory_bound, prepare, rotated
from bench.kernels_check import attended, chosen_rows, share, shares
from bench.kernels_rows import (
    Report,
    called,
)
from bench.kernels_time import FLUSHED, MOST_LAUNCHES, Graphs, HostClock, Probes, launches_for, per_launch
from vino_kernels.boundary_attention import ref
from vino_kernels.choice import OPERATIONS, Device, Shape, Table, read_table, render

CPU = torch.device("cpu")
GPU = Device("cuda", "Some GPU", (9, 0), frozenset({"triton", "flash", "cudnn"}))
FIELDS = {"bench", "case", "metric", "value", "unit", "spread", "ceiling", "machine", "versions", "commit"}


def small(branches: int = 1, *, isolated: bool = False) -> Case:
    return attention(40, branches, heads=2, channels=16, dtype=torch.float32, isolated=isolated)


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
        "at the bandwidth of a copy of as many bytes",
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
    options = argparse.Namespace(write_table=None, no_flex=True, seconds=-1.0)
    ((row,),) = (outcome.measures for outcome in kernels.run(quick=True, options=options))
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
    assert long.visible_tiles((9, 0)) == 274 * 547
    assert alone.visible_tiles((9, 0)) == 4 * 42 * 83 + 110 * 547
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
    assert set(kernels.right_calls(wrong, report, Graphs(CPU))) == {called(case, "torch")}
    assert {row.case for row in report.measures if row.value > 1} == {called(case, name)}
    assert len(report.failures) == (name != "sdpa_flash")


def test_a_kernel_that_does_not_compile_ends_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    no_gpu(monkeypatch)
    monkeypatch.setattr(kernels, "measure", refuse)
    (outcome,) = kernels.run(quick=True, options=argparse.Namespace(write_table=None, no_flex=True, seconds=60.0))
    assert [text.partition(": out of")[0] for text in outcome.failures] == ["small: OutOfResources"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("No kernel"),
        AttributeError("No kernel"),
        TypeError("No kernel"),
        CalledProcessError(1, "No kernel"),
    ],
)
def test_a_claim_that_does_not_hold_is_a_failure(error: Exception) -> None:
    """Whatever a compiler or library raises, the rows of the other implementations stay."""
    made = prepare(small(), CPU)

    def refuse() -> None:
        raise error

    report = Report()
    calls = {**made.calls, "sdpa_cudnn": refuse}
    assert set(kernels.right_calls(replace(made, calls=calls), report, Graphs(CPU))) == {called(small(), "torch")}
    (told,) = report.failures
    assert f"sdpa_cudnn says that it can serve this and does not: {type(error).__name__}: " in told
    assert "No kernel" in told


def test_a_series_is_written_before_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs in the second series, or ends the process, leaves the rows of the first."""
    no_gpu(monkeypatch)

    def measure(series: Series, *others: Any, **options: Any) -> None:
        if series.name == "b":
            raise KeyboardInterrupt
        others[2].measures.append(Measure(series.name, "time", 1.0, "us"))

    monkeypatch.setattr(kernels, "all_series", lambda *_, **__: [Series("a", ()), Series("b", ())])
    monkeypatch.setattr(kernels, "measure", measure)
    outcomes = kernels.run(quick=True, options=argparse.Namespace(write_table=None, no_flex=True, seconds=60.0))
    assert [row.case for row in next(outcomes).measures] == ["cpu, a"]
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)


def test_flex_attention_is_compiled_behind_everything_else() -> None:
    found = all_series(GPU, quick=False)
    assert [series.flex for series in found] == [*[False] * (len(found) - 1), True]
    assert {case.shape.rows for case in found[-1].cases} == {35_000, 105_000}


def test_tables_have_the_room_of_the_model_s() -> None:
    assert attention(40).bounds.offsets == (0, 40, 40, 40, 40)
    assert attention(40, 3).bounds.offsets == (0, 40, 80, 120, 120)
    assert attention(40, isolated=True).bounds.groups == (0, 6, 12, 18, 24, 40, 40)
    made = prepare(small(3), CPU)
    parts = made.apart["torch"]()
    torch.testing.assert_close(torch.cat(parts), made.calls["torch"]())


def test_what_moves_memory_is_timed_as_many_launches_on_memory_of_their_own() -> None:
    case = memory_bound(1_600, 24, 128, torch.bfloat16, fp8=False)[1]
    assert launches_for(case.moved) * case.moved > 4 * FLUSHED, "more than any cache holds, several times"
    assert launches_for(1.0) == MOST_LAUNCHES
    assert launches_for(1e12) == 2
    made = prepare(memory_bound(40, 2, 48, torch.float32, fp8=False)[2], CPU)
    calls = rotated(made, ["torch"])["torch"]
    assert len(calls) == launches_for(made.case.moved)
    made.inputs[0].zero_()
    assert not torch.equal(calls[0](), calls[1]()), "the second has inputs of its own"
    launches = Graphs(CPU).record(calls[:3])
    launches()
    timings = {"many": Timing((3.0, 6.0)), "one": Timing((3.0, 6.0))}
    found = per_launch(timings, {"many": launches, "one": lambda: None})
    assert (found["many"].seconds, found["one"].seconds) == ((1.0, 2.0), (3.0, 6.0))


def test_a_copy_of_as_many_bytes_is_the_faster_of_two() -> None:
    probes = Probes(CPU, (), 16, 4096, (8000.0,))
    names = list(probes.calls(Graphs(CPU)))
    assert names == [
        "ceiling: copy",
        "ceiling: copy, 8000 bytes moved, by driver",
        "ceiling: copy, 8000 bytes moved, by kernel",
    ]
    found = probes.best({name: Timing((seconds,)) for name, seconds in zip(names, (1.0, 4.0, 2.0), strict=True)})
    assert found.copies == {8000.0: 4000.0}


def test_quantised_rows_are_judged() -> None:
    case = next(c for c in memory_bound(40, 2, 48, torch.bfloat16, fp8=True) if c.shape.variant == "fp8")
    made = prepare(case, CPU)
    good = made.calls["torch"]()
    assert good.dtype == torch.float8_e4m3fn
    found = shares(case, made.inputs, {"good": good, "bad": (good.float() * 2).to(good.dtype)})
    assert found["good"] <= 1 < found["bad"]


def test_probes_give_rates_of_known_work() -> None:
    probes = Probes(CPU, (torch.float32,), 16, 4096)
    timings = HostClock().interleave(probes.calls(), repeats=2)
    fixed = {name: Timing((0.5, 0.5)) for name in timings}
    found = probes.best(fixed)
    assert found.bandwidth == 2 * 4096 / 0.5
    assert found.rates == {torch.float32: 2 * 16**3 / 0.5}


@pytest.mark.slow
def test_a_series_on_a_gpu_from_check_to_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played on the CPU: every implementation is PyTorch's, the device only says that it is a GPU."""
    names = [known.name for known in OPERATIONS["boundary_attention"]]

    def played(case: Case, device: object, *, flex: bool) -> Prepared:
        made = prepare(case, CPU)
        given = dict.fromkeys(names if case.flops else ("vino", "torch"), made.calls["torch"])
        return replace(made, calls=given, apart=dict.fromkeys(given, made.apart["torch"]) if made.apart else {})

    monkeypatch.setattr(kernels, "prepare", played)
    monkeypatch.setattr(
        kernels, "Probes", lambda device, dtypes, side, size, moved: Probes(CPU, dtypes, 16, 4096, moved)
    )
    monkeypatch.setattr(kernels, "Graphs", lambda device: Graphs(CPU))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Device, "of", lambda device: GPU)
    series = Series(
        "played", (small(), small(isolated=True), small(3), *memory_bound(40, 2, 48, torch.float32, fp8=False))
    )
    report = Report()
    kernels.measure(series, SimpleNamespace(type="cuda"), HostClock(), report, large=True)  # type: ignore[arg-type]
    read = read_table(render(Table(tuple(report.entries))), "measured")
    assert len(read.entries) == len(series.cases)
    assert {*read.entries[0].microseconds} == set(names)
    metrics = {row.metric for row in report.measures}
    assert {"a call for each branch / packed, vino", "time in proportion to visible tiles, vino"} <= metrics
    assert any("/ dispatcher (" in metric for metric in metrics)
    assert any("/ dispatcher as the model calls it (" in metric for metric in metrics)
    assert not [text for text in report.failures if "was not timed" in text]


@pytest.mark.gpu
def test_the_command_runs_on_this_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["kernels", "--quick", "--json"]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["machine"]["gpu"] for row in rows} == {torch.cuda.get_device_name(0)}
    timed_names = {row["case"].rpartition(", ")[2] for row in rows if row["metric"] == "time"}
    assert {"vino", "torch"} <= timed_names
