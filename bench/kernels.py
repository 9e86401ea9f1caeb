"""How fast is each kernel, beside PyTorch's own and beside what this GPU can copy and multiply?

Every implementation of an operation that can serve a case runs in the same rounds as the ceilings. None is timed whose
error is above the accuracy rule (`kernels_check`). The rows of a series are written when it is done. Without a CUDA
device PyTorch's operations run at small sizes on the CPU: that shows the command works and says nothing about kernels.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import torch
from triton.errors import TritonError

from bench import gpu_place
from bench.harness import Measure, Outcome, Timing
from bench.kernels_cases import OF_OURS, Case, Prepared, Series, all_series, prepare, rotated
from bench.kernels_check import shares
from bench.kernels_rows import (
    Report,
    best_rows,
    called,
    compare,
    compare_copy,
    compare_dispatcher,
    compare_isolated,
    compare_packed,
    entry,
    time_rows,
)
from bench.kernels_time import Best, Call, Clock, Graphs, Probes, clock_of, per_launch
from vino_kernels.choice import PATH, Device, Table, packaged, read_table, render
from vino_rt.errors import UsageError

place = gpu_place.place
NOT_MEASURED = (
    "no CUDA device: kernels were not measured; these rows are PyTorch's operations on the CPU, at small sizes"
)
REPEATS, QUICK_REPEATS = 20, 3
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, SubprocessError,
    TypeError, ValueError, TritonError,
)  # fmt: skip
"""What compilers and libraries raise where they fail: one implementation is lost by it, not the rows of the others."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--write-table",
        nargs="?",
        const=PATH,
        type=Path,
        metavar="FILE",
        help=f"put the times into a table of the dispatcher, left out: its own, {PATH.name}; on a GPU",
    )
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out, which compiles for minutes")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no further series of cases after so long"
    )


def run(*, quick: bool, options: argparse.Namespace) -> Iterator[Outcome]:
    """All series on the first CUDA device, or a small one on the CPU; the outcome of each as it is done.

    Raises UsageError for a table without a GPU or of a quick run.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if options.write_table and (quick or device.type == "cpu"):
        raise UsageError("--write-table takes a CUDA device and real sizes: leave --quick out and run it on a GPU")
    if device.type == "cpu":
        print(NOT_MEASURED, file=sys.stderr)
    start, clock = time.monotonic(), clock_of(device)
    for series in all_series(Device.of(device), quick=quick):
        if series.flex and options.no_flex:
            continue
        report = Report()
        if time.monotonic() - start > options.seconds:
            print(f"{series.name}: left out, {options.seconds:g} s are over", file=sys.stderr)
            report.measures.append(Measure(series.name, "cases left out for lack of time", len(series.cases), ""))
        else:
            try:
                measure(series, device, clock, report, large=device.type == "cuda" and not quick)
            except FAULTS as error:
                report.failures.append(f"{series.name}: {type(error).__name__}: {error}")
        if options.write_table and report.entries:
            write_table(Table(tuple(report.entries)), options.write_table)
        label = f"{device.type}, "
        measures = [Measure(**{**vars(row), "case": label + row.case}) for row in report.measures]
        yield Outcome(measures, report.failures)


def measure(series: Series, device: torch.device, clock: Clock, report: Report, *, large: bool) -> None:
    """Check, time and compare the cases of a series."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    graphs = Graphs(device)
    works: list[Prepared] = []
    calls: dict[str, Call] = {}
    for case in series.cases:
        made = prepare(case, device, flex=series.flex)
        works.append(made)
        calls |= right_calls(made, report, graphs)
    dtypes = tuple(sorted({c.shape.dtype for c in series.cases if c.flops}, key=str))
    moved = tuple(sorted({c.moved for c in series.cases if c.moved}))
    probes = Probes(device, dtypes, 8192 if large else 64, 1 << (30 if large else 16), moved)
    every = calls | probes.calls(graphs)
    timings = per_launch(clock.interleave(every, repeats=REPEATS if large else QUICK_REPEATS), every)
    best = probes.best(timings)
    report.measures += best_rows(best, series.name)
    for work in works:
        report.measures += time_rows(work, timings, best)
    if large and not series.flex:
        judge(works, timings, best, Device.of(device), report)


def judge(works: Sequence[Prepared], timings: dict[str, Timing], best: Best, device: Device, report: Report) -> None:
    """Table entries of a series, and what its cases must reach; the dispatcher with the table of this very run."""
    origin = (gpu_place.gpu_versions(), gpu_place.commit())
    found = [entry(work, timings, device, origin) for work in works]
    report.entries += [made for made in found if made.microseconds]
    table, cases = Table().merged(Table(tuple(report.entries))), [work.case for work in works]
    for case in cases:
        compare(case, timings, report)
        compare_dispatcher(case, timings, device, table, report)
        compare_copy(case, timings, best, report)
        compare_packed(case, timings, report)
    compare_isolated(cases, timings, device.capability, report)


def right_calls(prepared: Prepared, report: Report, graphs: Graphs) -> dict[str, Call]:
    """The calls of a case by name in the rounds, without those whose result is wrong or that do not run.

    A kernel of ours that is wrong is a failure, and the others' rows stay; PyTorch's own that is less accurate than
    allowed is told in a row. What only moves memory is recorded as many launches (`kernels_time`).
    """
    case = prepared.case
    outputs = {
        name: out for name, call in prepared.calls.items() if (out := tried(case, name, call, report)) is not None
    }
    judged = shares(case, prepared.inputs, outputs)
    for name, share in judged.items():
        report.measures.append(Measure(called(case, name), "error, of what is allowed", share, "x"))
        if not share <= 1 and name in OF_OURS:
            report.failures.append(f"{called(case, name)} is off by {share:.3g} times what is allowed")
    right = [name for name, share in judged.items() if share <= 1]
    if case.moved:
        made = {n: tried(case, n, partial(graphs.record, c), report) for n, c in rotated(prepared, right).items()}
        return {called(case, name): launches for name, launches in made.items() if launches is not None}
    found = {called(case, name): prepared.calls[name] for name in right}
    return found | {called(case, name, apart=True): prepared.apart[name] for name in right if name in prepared.apart}


def tried(case: Case, name: str, call: Callable[[], Any], report: Report) -> Any:
    """What a call returns; None and a failure where it does not run."""
    try:
        return call()
    except FAULTS as error:
        told = f"{type(error).__name__}: {error}"
        report.failures.append(f"{called(case, name)} says that it can serve this and does not: {told}")
        return None


def write_table(new: Table, path: Path) -> None:
    """Put entries into the table file in the place of older ones; other GPUs' stay. Renamed into place when whole.

    A file that is not there yet begins as the packaged table.
    """
    old = read_table(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else packaged()
    text = render(old.merged(new))
    read_table(text, "the table that was measured")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    print(f"{path}: {len(new.entries)} entries written", file=sys.stderr)
