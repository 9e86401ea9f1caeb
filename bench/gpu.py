"""Does everything here that needs a GPU work on this one, and how fast is it?

GPU tests, a memory checker, `bench kernels`, denoise steps at full size and training steps, each in a process of its
own, within ten minutes. Rows are written without being asked for: those of the benchmarks to their own files, the
summary to `gpu.jsonl`.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import gpu_place, harness
from bench.gpu_steps import SECONDS, Done, Execute, Step, execute, run_steps
from bench.harness import Mark, Measure, Outcome, Spread
from vino_rt.errors import UsageError

place = gpu_place.place
RESULTS = Path(__file__).parent / "results"
CHECKER = "compute-sanitizer"
TOOLKIT = Path("/usr/local/cuda/bin")
CHECKED = ("tests/kernels/test_choice_bodies.py", "-k", "memory_every_kernel_once")
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
SIDE_BY_SIDE = "6"
"""Processes that share the tests: compiling keeps a core busy for most of their time, and hardly the GPU."""
TIME_OVER = "session-timeout"
"""What pytest says of tests that it did not begin because their time was over; those that ran are in its report."""
SHOWN_FAILURES = 20


@dataclass
class Findings:
    """What has come of the steps so far."""

    measures: list[Measure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--minutes", type=float, default=10.0, help="what does not fit is left out and told; 10")
    parser.add_argument(
        "--results", type=Path, help="directory of the rows; bench/results when left out, none with --quick"
    )


def run(*, quick: bool, options: argparse.Namespace) -> Outcome:
    """Every step that fits. Raises UsageError where PyTorch sees no CUDA device; nothing is written then."""
    if options.save:
        raise UsageError("bench gpu writes its rows itself, leave --save out; --results DIR names another directory")
    if not torch.cuda.is_available():
        raise UsageError(
            f"bench gpu needs an NVIDIA GPU that PyTorch can use, and torch {torch.__version__} sees none; look with "
            "nvidia-smi, and install a build of torch with CUDA. On a CPU: python -m bench kernels"
        )
    results = options.results or (None if quick else RESULTS)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "tests.xml"
        return conduct(steps(report, quick=quick), report, 60 * options.minutes, results, execute)


def steps(report: Path, *, quick: bool) -> list[Step]:
    """What is run, in order; `report` is where the tests leave theirs."""
    # A package that is missing takes the tests with it that need it, and no others.
    lenient = ("-p", "no:cacheprovider", "--continue-on-collection-errors")
    tests = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", *lenient)
    checker = shutil.which(CHECKER) or shutil.which(CHECKER, path=str(TOOLKIT))
    checked = (checker or CHECKER, "--tool", "memcheck", "--error-exitcode", "86", *tests, *CHECKED)
    absent = "" if checker else f"{CHECKER} was not found; it comes with the CUDA toolkit"
    small = ("--quick",) if quick else ()
    kernels = (sys.executable, "-m", "bench", "kernels", "--json", "--seconds", SECONDS, *small)
    full = (sys.executable, "-m", "bench.gpu_full", *small)
    train = (sys.executable, "-m", "bench.gpu_train", *small)
    split = ("-n", SIDE_BY_SIDE, f"--{TIME_OVER}={SECONDS}", f"--junitxml={report}")
    # PyTorch's own pool would hide reads and writes beyond a tensor from the checker.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step("tests", (*tests, *split, "tests"), limit=220, least=60, reserve=40),
        # As long as a series with FlexAttention, which is compiled for it: what is ended in one loses the rows of all.
        Step("kernels", kernels, limit=240, least=120, reserve=90),
        Step("full size", full, limit=120, least=60),
        Step("memory checker", checked, limit=100, least=30, environment=uncached, absent=absent),
        Step("train", train, limit=120, least=30),
    ]


def conduct(wanted: Sequence[Step], report: Path, budget: float, results: Path | None, executor: Execute) -> Outcome:
    """Run steps within a budget (seconds), write their rows as each ends, then the summary."""
    findings = Findings()
    for done in run_steps(wanted, budget, executor):
        if done.ended is None:
            print(f"{done.step.name}: left out: {done.skipped}", file=sys.stderr)
            findings.measures.append(Measure(done.step.name, f"left out: {done.skipped}", 0, ""))
            continue
        findings.measures.append(Measure(done.step.name, "time", done.seconds, "s"))
        if done.step.name == "tests":
            read_tests(report, findings)
        take_rows(done, results, findings)
        judge(done, findings)
    if results is not None:
        harness.save(place(harness.stamp("gpu", findings.measures)), results)
    return Outcome(findings.measures, findings.failures)


def judge(done: Done, findings: Findings) -> None:
    """A step that did not end well is a failure; what it said last is told."""
    assert done.ended is not None
    name, code = done.step.name, done.ended.code
    if done.step.name == "memory checker" and (told := SUMMARY.findall(done.ended.out + done.ended.err)):
        findings.measures.append(Measure(name, "errors", sum(map(int, told)), ""))
    if code is None:
        findings.failures.append(f"{name}: ended after {done.seconds:.0f} s, it was not finished")
    elif code:
        own = [line.partition(": ")[2] for line in done.ended.err.splitlines() if line.startswith(f"{name}: ")]
        said = (done.ended.err.strip() or done.ended.out.strip()).splitlines()
        last = [line.strip("! ") for line in said if TIME_OVER in line][:1] or said[-1:]
        findings.failures += [f"{name}: {line}" for line in own or [f"ended with code {code}", *last]]


def read_tests(report: Path, findings: Findings) -> None:
    """Counts of the tests' report, and the names of those that failed; no report is told by the step's exit code."""
    if not report.is_file():
        return
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[kind] += 1
        if kind == "failed" and counts["failed"] <= SHOWN_FAILURES:
            findings.failures.append(f"tests: {case.get('classname')}::{case.get('name')} failed")
    findings.measures += [Measure("tests", kind, number, "") for kind, number in counts.items()]
    if not counts["passed"]:
        findings.failures.append("tests: none passed")


def take_rows(done: Done, results: Path | None, findings: Findings) -> None:
    """Append the rows of a benchmark to its own file; those with a requirement stand in the summary, too."""
    assert done.ended is not None
    lines = [line for line in done.ended.out.splitlines() if line.startswith('{"bench":')]
    if not lines:
        return
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    findings.measures.append(Measure(done.step.name, "rows", len(rows), ""))
    findings.measures += [as_measure(row) for row in rows if "required" in (row["ceiling"] or {}).get("what", "")]
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        with (results / f"{rows[0]['bench']}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))


def as_measure(row: dict[str, Any]) -> Measure:
    """A measure from the JSON of its row."""
    spread = Spread(**row["spread"]) if row["spread"] else None
    return Measure(row["case"], row["metric"], row["value"], row["unit"], spread, Mark(**row["ceiling"]))
