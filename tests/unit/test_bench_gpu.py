"""`python -m bench gpu`: without a GPU nothing happens, what does not fit the time is told, failures fail.

Steps are played by a fake executor and a fake clock; one test runs real processes.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import __main__ as command
from bench import gpu, gpu_full, gpu_train
from bench.gpu_steps import SECONDS, Done, Ended, Step, execute, run_steps
from bench.harness import CheckFailed, Measure, as_json, stamp
from bench.kernels_rows import OURS
from vino_rt.models.vino.tables import transformer_table

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><failure message="x"/></testcase>
<testcase classname="tests.b" name="three"><skipped/></testcase></testsuite></testsuites>"""


class Machine:
    """A clock, and processes that take the seconds that their command says first."""

    def __init__(self) -> None:
        self.now = 100.0
        self.commands: list[Sequence[str]] = []

    def clock(self) -> float:
        return self.now

    def execute(self, command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Ended:
        self.commands.append(command)
        wanted = float(command[0])
        self.now += min(wanted, seconds)
        return Ended(0 if wanted <= seconds else None, "", "")


def played(budget: float, *steps: Step) -> tuple[Machine, list[Done]]:
    machine = Machine()
    return machine, list(run_steps(steps, budget, machine.execute, machine.clock))


def step(name: str, seconds: float, **values: Any) -> Step:
    return Step(name, (str(seconds), SECONDS), **{"limit": 100.0, "least": 20.0, **values})


def test_without_a_gpu_nothing_is_run_or_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "execute", pytest.fail)
    assert command.main(["gpu"]) == 2
    told = capsys.readouterr()
    assert "needs an NVIDIA GPU that PyTorch can use" in told.err
    assert not told.out
    assert not list(tmp_path.iterdir())
    assert command.main(["gpu", "--save"]) == 2
    with pytest.raises(SystemExit, match="2"):
        gpu_train.main([])


def test_steps_that_fit_are_run_in_order() -> None:
    machine, done = played(100, step("a", 30), step("b", 40, reserve=10))
    assert [(d.step.name, d.seconds, d.skipped) for d in done] == [("a", 30, ""), ("b", 40, "")]
    assert [command[1] for command in machine.commands] == ["100", "60"]


def test_a_step_is_ended_at_its_limit_or_at_the_end_of_the_budget() -> None:
    _, done = played(100, step("a", 90, limit=50.0), step("b", 90))
    assert [d.seconds for d in done] == [50, 50]
    assert [d.ended and d.ended.code for d in done] == [None, None]


def test_what_does_not_fit_is_left_out_and_later_ones_may_fit() -> None:
    _, done = played(100, step("a", 75), step("b", 10, least=30.0), step("c", 10), step("d", 1, absent="not found"))
    assert [d.step.name for d in done if d.ended] == ["a", "c"]
    assert [d.skipped for d in done if d.skipped] == ["25 s are left of 100, it takes at least 30", "not found"]


def test_a_process_is_ended_with_those_it_began() -> None:
    done = execute([sys.executable, "-c", "import os; print(os.environ['SAID'])"], {"SAID": "yes"}, 60)
    assert (done.code, done.out) == (0, "yes\n")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert execute([sys.executable, "-c", child], {}, 1.0).code is None
    assert time.monotonic() - start < 30


def rows(*values: float) -> str:
    measures = [Measure("case", "sdpa_cudnn / vino", value, "%", None, OURS) for value in values]
    return "\n".join(["noise", *as_json(stamp("kernels", [*measures, Measure("case", "time", 1.0, "us")]))]) + "\n"


def conducted(tmp_path: Path, results: Path | None, ends: Mapping[str, Ended]) -> tuple[list[Measure], Sequence[str]]:
    report = tmp_path / "tests.xml"

    def act(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Ended:
        if command[0] == "tests":
            report.write_text(JUNIT)
        return ends[command[0]]

    steps = [Step(name, (name,), 100, 1) for name in ends] + [Step("absent", ("absent",), 1, 1, absent="not found")]
    outcome = gpu.conduct(steps, report, 1000, results, act)
    return list(outcome.measures), outcome.failures


def test_rows_are_written_and_the_required_ones_are_shown(tmp_path: Path) -> None:
    results = tmp_path / "results"
    measures, failures = conducted(tmp_path, results, {"kernels": Ended(0, rows(97.0, 99.0), "")})
    assert not failures
    assert [m.value for m in measures if m.metric == "sdpa_cudnn / vino"] == [97.0, 99.0]
    assert [m.metric for m in measures if m.case == "absent"] == ["left out: not found"]
    written = [json.loads(line) for line in (results / "kernels.jsonl").read_text().splitlines()]
    assert [row["bench"] for row in written] == ["kernels"] * 3
    summary = [json.loads(line) for line in (results / "gpu.jsonl").read_text().splitlines()]
    assert len(summary) == len(measures)
    assert {row["bench"] for row in summary} == {"gpu"}
    assert all(row["commit"] for row in summary)


def test_nothing_is_written_where_nothing_was_asked(tmp_path: Path) -> None:
    conducted(tmp_path, None, {"kernels": Ended(0, rows(97.0), "")})
    assert not list(tmp_path.iterdir())


def test_failures_are_told(tmp_path: Path) -> None:
    measures, failures = conducted(
        tmp_path,
        None,
        {
            "tests": Ended(1, "1 failed", ""),
            "kernels": Ended(1, rows(90.0), "round 1\nkernels: case: too slow\nkernels: another\n"),
            "memory checker": Ended(86, "========= ERROR SUMMARY: 3 errors\n", "last words"),
            "train": Ended(None, "", ""),
            "late": Ended(1, "..\n!!!! session-timeout: 180.0 sec exceeded !!!!\n2 passed in 181 s\n", ""),
        },
    )
    assert failures[:2] == ["tests: tests.a::two failed", "tests: ended with code 1"]
    assert failures[2] == "tests: 1 failed"
    assert failures[3:5] == ["kernels: case: too slow", "kernels: another"]
    assert failures[5:7] == ["memory checker: ended with code 86", "memory checker: last words"]
    assert failures[7].startswith("train: ended after")
    assert failures[8:] == ["late: ended with code 1", "late: session-timeout: 180.0 sec exceeded"]
    counts = {m.metric: m.value for m in measures if m.case == "tests"}
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)
    assert [m.value for m in measures if m.metric == "errors"] == [3]


@pytest.mark.parametrize("found", [None, "/somewhere/compute-sanitizer"])
def test_a_memory_checker_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: found)
    steps = {one.name: one for one in gpu.steps(Path("tests.xml"), quick=False)}
    assert list(steps) == ["tests", "kernels", "full size", "memory checker", "train"]
    assert ("was not found" in steps["memory checker"].absent) == (found is None)
    assert steps["memory checker"].command[0] == (found or "compute-sanitizer")
    assert sum(one.least for one in steps.values()) < 60 * 10
    assert "gpu" in steps["tests"].command
    # A report is only written by tests that end by themselves.
    assert {f"--session-timeout={SECONDS}", "--continue-on-collection-errors"} <= set(steps["tests"].command)
    assert all(steps[name].reserve < steps[name].least for name in ("tests", "kernels"))
    assert "-n" not in steps["memory checker"].command


def test_the_checked_test_is_there() -> None:
    path, _, words = gpu.CHECKED
    text = Path(__file__).parents[2].joinpath(path).read_text(encoding="utf-8")
    assert f"@pytest.mark.gpu\ndef test_{words}(" in text


def test_a_full_size_step_is_measured_and_checked() -> None:
    sizes, cpu = gpu_full.quick_size(), torch.device("cpu")
    rows = list(gpu_full.measures(cpu, sizes, lambda work: work))
    ways = [f"step, {way}{share}" for way in ("plain launches", "replayed") for share in ("", " / matrix rate")]
    metrics = ["ceiling: product, bfloat16", *ways]
    assert [(row.case, row.metric) for row in rows] == [(case.label, name) for case in sizes.cases for name in metrics]
    assert all(row.value > 0 for row in rows)
    with pytest.raises(CheckFailed, match="3 replayed steps are not those of plain launches"):
        list(gpu_full.measures(cpu, sizes, lambda work: lambda: None))


def test_full_size_is_the_released_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = gpu_full.full_size()
    assert sum(math.prod(shape) for shape in transformer_table(sizes.config).values()) > 12e9
    labels = [case.label for case in sizes.cases]
    assert labels[0] == "1,600 + 640 tokens, 1 branch"
    assert labels[-1] == "27,030 + 640 tokens, 1 branch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu_full.main([])
