"""Does everything here that needs a GPU work on this one, and how fast is it?

GPU tests, `bench kernels`, denoise steps at full size, requests, a memory checker and training steps, each in a process
of its own, within eight minutes. Rows are written as they come: those of a benchmark to its own file, the summary to
`gpu.jsonl`, the times of kernels to `table.json`, and what the steps print to `gpu.log`.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench import gpu_place
from bench.gpu_results import TABLE, Results, required
from bench.gpu_steps import SECONDS, Done, Execute, Step, execute, run_steps
from bench.gpu_tests import REPORT, Case, missing_package, read_report
from bench.harness import Measure, Outcome
from vino_rt.errors import UsageError

place = gpu_place.place
RESULTS = Path(__file__).parent / "results"
MINUTES = 8.0
CHECKER = "compute-sanitizer"
TOOLKIT = Path("/usr/local/cuda/bin")
CHECKED = ("tests/kernels/test_choice_bodies.py", "-k", "memory_every_kernel_once")
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.gpu_tests")
MOST_SIDE_BY_SIDE = 12
"""Processes that share the tests: compiling keeps a core busy for most of their time, and hardly the GPU."""
TEST_SECONDS = 60
"""Of one test. Its process is ended with it, since no signal reaches one that waits for a GPU."""
TIME_OVER = "session-timeout"
"""What pytest says of tests that it did not begin because their time was over."""
SHOWN_FAILURES = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"steps that do not fit are left out and named; {MINUTES:g}"
    )
    parser.add_argument("--only", metavar="STEP[,STEP...]", help="run these steps alone, for example: kernels,train")
    parser.add_argument(
        "--results", type=Path, help="directory of the rows; bench/results when left out, none with --quick"
    )


def run(*, quick: bool, options: argparse.Namespace) -> Iterator[Outcome]:
    """Every step that fits. Raises UsageError where PyTorch sees no CUDA device; nothing is written then."""
    if options.save:
        raise UsageError("bench gpu writes its rows itself, leave --save out; --results DIR names another directory")
    if not torch.cuda.is_available():
        raise UsageError(
            f"bench gpu needs an NVIDIA GPU that PyTorch can use, and torch {torch.__version__} sees none; look with "
            "nvidia-smi, and install a build of torch with CUDA. On a CPU: python -m bench kernels"
        )
    directory = options.results or (None if quick else RESULTS)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "tests.jsonl"
        table = None if quick or directory is None else directory.resolve() / TABLE
        wanted = chosen(steps(report, table, quick=quick), options.only)
        yield from conduct(wanted, report, 60 * options.minutes, Results(directory), execute)


def chosen(known: Sequence[Step], only: str | None) -> list[Step]:
    """The steps that `--only` names; UsageError for a name that is none."""
    names = [step.name for step in known]
    wanted = names if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in wanted if name not in names]:
        raise UsageError(f"--only names {', '.join(map(repr, unknown))}; the steps are {', '.join(names)}")
    return [step for step in known if step.name in wanted]


def steps(report: Path, table: Path | None, *, quick: bool) -> list[Step]:
    """What is run, in order; `report` is where the tests leave theirs, `table` where the times of kernels go."""
    small = ("--quick",) if quick else ()
    kernels = (sys.executable, "-m", "bench", "kernels", "--json", "--seconds", SECONDS, *small)
    written = () if table is None else ("--write-table", str(table))
    full, requests, train = (
        (sys.executable, "-m", f"bench.{name}", *small) for name in ("gpu_full", "gpu_requests", "gpu_train")
    )
    told = {REPORT: str(report)}
    return [
        Step("tests", tests("gpu and not compiles"), limit=150, least=60, reserve=20, environment=told),
        # A series that is ended loses its rows; that with FlexAttention, which compiles for a minute, comes last.
        Step("kernels", (*kernels, *written), limit=170, least=90, reserve=40),
        Step("full size", full, limit=170, least=90),
        Step("requests", requests, limit=60, least=40),
        memory_checker(),
        Step("train", train, limit=60, least=30),
        # Inductor compiles for minutes: what the steps before leave.
        Step("compiled tests", tests("gpu and compiles"), limit=240, least=60, reserve=20, environment=told),
    ]


def tests(which: str) -> tuple[str, ...]:
    """pytest on the tests with these marks, for `SECONDS` at most."""
    side_by_side = max(2, min(MOST_SIDE_BY_SIDE, (os.cpu_count() or 2) * 3 // 4))
    # A package that is missing takes the tests with it that need it, and no others.
    lenient = ("--continue-on-collection-errors", "-n", str(side_by_side), f"--{TIME_OVER}={SECONDS}")
    return (*PYTEST, "-q", "-m", which, *lenient, f"--timeout={TEST_SECONDS}", "--timeout-method=thread", "tests")


def memory_checker() -> Step:
    """Every kernel once under NVIDIA's memory checker, where there is one."""
    checker = shutil.which(CHECKER) or shutil.which(CHECKER, path=str(TOOLKIT))
    # The driver answers some questions with an error code, which PyTorch expects: those are no errors of memory.
    told = (checker or CHECKER, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "86")
    return Step(
        "memory checker",
        (*told, *PYTEST, "-q", "-m", "gpu", *CHECKED),
        limit=100,
        least=30,
        # PyTorch's own pool would hide reads and writes beyond a tensor from the checker.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        absent="" if checker else f"{CHECKER} was not found; it comes with the CUDA toolkit",
    )


def conduct(
    wanted: Sequence[Step], report: Path, budget: float, results: Results, executor: Execute
) -> Iterator[Outcome]:
    """Run steps within a budget (seconds); the outcome of each is written and handed back as it ends."""
    for done in run_steps(wanted, budget, executor, results.hear):
        cases = read_report(report) if REPORT in done.step.environment else []
        report.unlink(missing_ok=True)
        measures, failures = found(done, results, cases)
        results.save(measures)
        for line in (f"{m.case}: {m.metric} {m.value:g} {m.unit}".rstrip() for m in measures):
            print(line, file=sys.stderr, flush=True)
        yield Outcome(measures, failures)


def found(done: Done, results: Results, cases: Sequence[Case]) -> tuple[list[Measure], list[str]]:
    """Measures and failures of a step: its time, its rows that have a requirement, its tests, and how it ended."""
    name = done.step.name
    if done.ended is None:
        return [Measure(name, f"left out: {done.skipped}", 0, "")], []
    measures = [Measure(name, "time", done.seconds, "s")]
    failures: list[str] = []
    if rows := results.take_rows():
        measures.append(Measure(name, "rows", len(rows), ""))
        measures += [measure for row in rows if (measure := required(row)) is not None]
    if REPORT in done.step.environment:
        counted, failures = count(name, cases)
        measures += counted
    if name == "memory checker" and (told := SUMMARY.findall(done.ended.out + done.ended.err)):
        measures.append(Measure(name, "errors", sum(map(int, told)), ""))
    accounted = done.ended.code == 1 and any(case.outcome in ("failed", "missing") for case in cases)
    if accounted and TIME_OVER not in done.ended.out:
        return measures, failures
    ending, package = ended(done)
    if package:
        return [*measures, Measure(name, f"not run: package {package} is not installed", 0, "")], failures
    return measures, failures + ending


def ended(done: Done) -> tuple[list[str], str]:
    """What a step that did not end well said last; and the package that it lacks, if that is the reason."""
    assert done.ended is not None
    name, code = done.step.name, done.ended.code
    if code is None:
        return [f"{name}: ended after {done.seconds:.0f} s, it was not finished"], ""
    if not code:
        return [], ""
    own = [line.partition(": ")[2] for line in done.ended.err.splitlines() if line.startswith(f"{name}: ")]
    said = (done.ended.err.strip() or done.ended.out.strip()).splitlines()
    last = [line.strip("! ") for line in said if TIME_OVER in line][:1] or said[-1:]
    return [f"{name}: {line}" for line in own or [f"ended with code {code}", *last]], missing_package(" ".join(last))


def count(name: str, cases: Sequence[Case]) -> tuple[list[Measure], list[str]]:
    """How many tests came out how, which failed, and apart from those the packages that others would need."""
    outcomes = Counter(case.outcome for case in cases)
    measures = [Measure(name, kind, outcomes[kind], "") for kind in ("passed", "failed", "skipped")]
    packages = Counter(case.told for case in cases if case.outcome == "missing")
    measures += [
        Measure(name, f"files and tests not run: package {package} is not installed", number, "")
        for package, number in sorted(packages.items())
    ]
    failed = [f"{name}: {case.name} failed: {case.told}" for case in cases if case.outcome == "failed"]
    if not outcomes["passed"]:
        failed.append(f"{name}: none passed")
    return measures, failed[:SHOWN_FAILURES]
