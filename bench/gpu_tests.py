"""Tests of `bench gpu`: a pytest plugin that writes what became of each test as it ends, and the reader of that file.

pytest's own reports are written when the last test has ended, so that a run that is ended would leave none.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

REPORT = "BENCH_GPU_TESTS"
"""Environment variable that names the file; without it the plugin does nothing."""
MISSING = re.compile(r"No module named '([A-Za-z0-9_]+)")
OURS = frozenset({"vino_rt", "vino_kernels", "vino_export", "bench", "tests"})
"""Packages of the checkout: one of them missing is a failure."""
TOLD = 300
"""Characters of a message that are kept."""


@dataclass(frozen=True)
class Case:
    """What became of a test, or of a file that pytest could not import."""

    name: str
    outcome: str
    """`passed`, `failed`, `skipped` or `missing`: a package is not installed."""
    told: str = ""
    """The error, the reason of the skip, or the name of the missing package."""


class Reporter:
    """Appends a line for each test that has ended and each file that could not be imported."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that has run, or that could not be set up or cleaned up."""
        if report.when == "call" or not report.passed:
            self._write(_case(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be imported; one that skips itself has no test to name."""
        if report.failed:
            self._write(_case(report))

    def _write(self, case: Case) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(case)) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Report from the process where all reports meet: workers of pytest-xdist send it theirs."""
    path = os.environ.get(REPORT)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporter(Path(path)))


def missing_package(text: str) -> str:
    """The package that an error says is not installed; empty where it says something else, or one is ours."""
    names = MISSING.findall(text)
    return names[-1] if names and names[-1] not in OURS else ""


def read_report(path: Path) -> list[Case]:
    """Cases in the order in which they ended; the last line of a killed process may be cut off and does not count."""
    if not path.is_file():
        return []
    return list(_whole(path.read_text(encoding="utf-8").split("\n")))


def _whole(lines: Iterable[str]) -> Iterator[Case]:
    """Of the lines that are complete."""
    for line in lines:
        if line.startswith("{") and line.endswith("}"):
            yield Case(**json.loads(line))


def _case(report: pytest.TestReport | pytest.CollectReport) -> Case:
    if report.outcome == "passed":
        return Case(report.nodeid, "passed")
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return Case(report.nodeid, "skipped", _short(reason))
    crash = getattr(report.longrepr, "reprcrash", None)
    # pytest reports a file that it cannot import by its text alone; the error stands last.
    text = crash.message if crash is not None else report.longreprtext
    lines = [line for line in text.splitlines() if line.strip()]
    told = (lines[0] if crash is not None else lines[-1]) if lines else "no message"
    package = missing_package(told) if "ModuleNotFoundError" in text else ""
    return Case(report.nodeid, "missing", package) if package else Case(report.nodeid, "failed", _short(told))


def _short(text: str) -> str:
    return text.strip()[:TOLD]
