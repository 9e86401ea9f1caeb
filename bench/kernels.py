"""How fast is each kernel, beside PyTorch's own and beside what this GPU can copy and multiply?

Every implementation of an operation that can serve a case runs in the same rounds as the ceilings, and none is timed
that is less accurate than the rule of design section 6 asks. Without a CUDA device PyTorch's operations run at small
sizes on the CPU: that shows the command works and says nothing about kernels.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from triton.errors import TritonError

from bench import gpu_place, harness
from bench.harness import Measure, Outcome
from bench.kernels_cases import Prepared, Series, all_series, prepare
from bench.kernels_check import shares
from bench.kernels_rows import (
    OF_OURS,
    Report,
    best_rows,
    called,
    compare,
    compare_copy,
    compare_isolated,
    compare_packed,
    entry,
    time_rows,
)
from bench.kernels_time import Clock, Probes, clock_of
from vino_kernels.choice import PATH, Device, Table, packaged, read_table, render
from vino_rt.errors import UsageError

place = gpu_place.place
NOT_MEASURED = (
    "no CUDA device: kernels were not measured; these rows are PyTorch's operations on the CPU, at small sizes"
)
REPEATS, QUICK_REPEATS = 20, 3
WITH_FLEX = ("long", "long, three branches")
"""Series in which FlexAttention runs: it is compiled for each case."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--write-table", action="store_true", help=f"put the times into the dispatcher's table, {PATH.name}; on a GPU"
    )
    parser.add_argument(
        "--no-flex", action="store_true", help="leave FlexAttention out, which is compiled for a minute"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no further series of cases after so long"
    )


def run(*, quick: bool, options: argparse.Namespace) -> Outcome:
    """All series on the first CUDA device, or a small one on the CPU.

    Raises UsageError for a table without a GPU or of a quick run.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if options.write_table and (quick or device.type == "cpu"):
        raise UsageError("--write-table takes a CUDA device and real sizes: leave --quick out and run it on a GPU")
    if device.type == "cpu":
        print(NOT_MEASURED, file=sys.stderr)
    facts, start, report = Device.of(device), time.monotonic(), Report()
    clock = clock_of(device)
    for series in all_series(facts, quick=quick):
        if time.monotonic() - start > options.seconds:
            print(f"{series.name}: left out, {options.seconds:g} s are over", file=sys.stderr)
            report.measures.append(Measure(series.name, "cases left out for lack of time", len(series.cases), ""))
            continue
        try:
            measure(series, device, clock, report, quick=quick, with_flex=not options.no_flex)
        except (RuntimeError, ValueError, TritonError) as error:
            report.failures.append(f"{series.name}: {type(error).__name__}: {error}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.write_table:
        write_table(Table(tuple(report.entries)), PATH)
    label = f"{device.type}, "
    measures = [Measure(**{**vars(row), "case": label + row.case}) for row in report.measures]
    return Outcome(measures, report.failures)


def measure(
    series: Series, device: torch.device, clock: Clock, report: Report, *, quick: bool, with_flex: bool
) -> None:
    """Check, time and compare the cases of a series."""
    facts = Device.of(device)
    works: list[Prepared] = []
    calls: dict[str, Callable[[], Any]] = {}
    for case in series.cases:
        made = prepare(case, device, with_flex=with_flex and series.name in WITH_FLEX)
        works.append(made)
        calls |= right_calls(made, report)
    dtypes = tuple(sorted({c.shape.dtype for c in series.cases if c.flops}, key=str))
    large = device.type == "cuda" and not quick
    probes = Probes(device, dtypes, 8192 if large else 64, 1 << (30 if large else 16))
    timings = clock.interleave(calls | probes.calls(), repeats=QUICK_REPEATS if quick else REPEATS)
    best = probes.best(timings)
    report.measures += best_rows(best, series.name)
    for work in works:
        report.measures += time_rows(work, timings, best)
    if not large:
        return
    origin = (gpu_place.gpu_versions(), harness.commit())
    found = [entry(work, timings, facts, origin) for work in works]
    report.entries += [made for made in found if made.microseconds]
    table = packaged()
    for case in series.cases:
        compare(case, timings, facts, table, report)
        compare_copy(case, timings, best, report)
        compare_packed(case, timings, report)
    compare_isolated(series.cases, timings, facts.capability[0], report)


def right_calls(prepared: Prepared, report: Report) -> dict[str, Callable[[], Any]]:
    """The calls of a case by name in the rounds, without those whose result is wrong or that do not run.

    A kernel of ours that is wrong is a failure, and the others' rows stay; PyTorch's own that is less accurate than
    allowed is told in a row.
    """
    case, outputs = prepared.case, {}
    for name, call in prepared.calls.items():
        try:
            outputs[name] = call()
        except (RuntimeError, TritonError) as error:
            report.failures.append(f"{called(case, name)} says that it can serve this and does not: {error}")
    found = {}
    for name, share in shares(case, prepared.inputs, outputs).items():
        report.measures.append(Measure(called(case, name), "error, of what is allowed", share, "x"))
        if not share <= 1 and name in OF_OURS:
            report.failures.append(f"{called(case, name)} is off by {share:.3g} times what is allowed")
        if share <= 1:
            found[called(case, name)] = prepared.calls[name]
            if name in prepared.apart:
                found[called(case, name, apart=True)] = prepared.apart[name]
    return found


def write_table(new: Table, path: Path) -> None:
    """Put entries into the table file in the place of older ones; other GPUs' stay. Renamed into place when whole."""
    old = read_table(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else Table()
    text = render(old.merged(new))
    read_table(text, "the table that was measured")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    print(f"{path}: {len(new.entries)} entries written", file=sys.stderr)
