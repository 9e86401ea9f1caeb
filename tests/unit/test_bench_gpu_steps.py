"""Steps of `bench gpu`: which are run within a budget, and how their processes are ended.

Most are played by a fake executor and a fake clock.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.gpu_steps import SECONDS, Done, Ended, Hear, Step, execute, run_steps
from tests.policy.source import ROOT


class Machine:
    """A clock, and processes that take the seconds that their command says first."""

    def __init__(self) -> None:
        self.now = 100.0
        self.commands: list[Sequence[str]] = []

    def clock(self) -> float:
        return self.now

    def execute(self, command: Sequence[str], environment: Mapping[str, str], seconds: float, hear: Hear) -> Ended:
        self.commands.append(command)
        wanted = float(command[0])
        self.now += min(wanted, seconds)
        return Ended(0 if wanted <= seconds else None, "", "")


def unheard(line: str) -> None:
    """Where nobody listens."""


def played(budget: float, *steps: Step) -> tuple[Machine, list[Done]]:
    machine = Machine()
    return machine, list(run_steps(steps, budget, machine.execute, unheard, machine.clock))


def step(name: str, seconds: float, **values: Any) -> Step:
    return Step(name, (str(seconds), SECONDS), **{"limit": 100.0, "least": 20.0, **values})


def test_steps_that_fit_are_run_in_order() -> None:
    machine, done = played(120, step("a", 30), step("b", 40, reserve=10))
    assert [(d.step.name, d.seconds, d.skipped) for d in done] == [("a", 30, ""), ("b", 40, "")]
    assert [command[1] for command in machine.commands] == ["100", "80"]


def test_a_step_is_ended_at_its_limit_or_at_the_end_of_the_budget() -> None:
    _, done = played(100, step("a", 90, limit=50.0), step("b", 90))
    assert [d.seconds for d in done] == [50, 50]
    assert [d.ended and d.ended.code for d in done] == [None, None]


def test_a_step_leaves_those_behind_it_what_they_need() -> None:
    _, done = played(100, step("a", 90), step("b", 90, least=30.0), step("c", 90, absent="not found"))
    assert [d.seconds for d in done] == [70, 30, 0]
    _, done = played(40, step("a", 90, least=30.0), step("b", 90, least=30.0))
    assert [d.seconds for d in done] == [30, 0], "with too little for both the first is run"


def test_what_does_not_fit_is_left_out_and_later_ones_may_fit() -> None:
    _, done = played(90, step("a", 75, least=75.0), step("b", 10, least=30.0), step("c", 10, least=10.0))
    assert [d.step.name for d in done if d.ended] == ["a", "c"]
    assert [d.skipped for d in done if d.skipped] == ["15 s are left of 90, it takes at least 30"]


@pytest.mark.parametrize("checker", [None, "/somewhere/compute-sanitizer"])
def test_with_default_limits_every_step_gets_its_least_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checker: str | None
) -> None:
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: checker)
    wanted = [
        Step(s.name, ("1000", SECONDS), s.limit, s.least, s.reserve, absent=s.absent)
        for s in gpu.steps(tmp_path / "report", None, quick=False)
    ]
    machine, done = played(60 * gpu.MINUTES, *wanted)
    for one in done:
        assert one.seconds >= one.step.least or one.step.absent, one.step.name
    assert machine.now - 100 <= 60 * gpu.MINUTES < 600, "what a machine is lent for at a time"
    # What is given by name is at least half of the least: a step told to stop at once would measure nothing.
    assert all(float(command[1]) >= 40 for command, s in zip(machine.commands, wanted, strict=False) if s.reserve)


def test_a_process_is_ended_with_those_it_began() -> None:
    heard: list[str] = []
    done = execute([sys.executable, "-c", "import os; print(os.environ['SAID'])"], {"SAID": "yes"}, 60, heard.append)
    assert (done.code, done.out, heard) == (0, "yes\n", ["yes"])
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert execute([sys.executable, "-c", child], {}, 1.0, unheard).code is None
    assert time.monotonic() - start < 30


def test_processes_find_the_packages_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolated from what is installed; a path that was given stays."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "carried.py").write_text("")
    find = "import importlib.util as u; print(*[u.find_spec(n).origin for n in {names}], sep='\\n')"
    names = ["carried", "vino_kernels", "vino_export", "vino_rt", "bench"]
    done = execute([sys.executable, "-S", "-c", find.format(names=names)], {}, 60, unheard)
    where = [ROOT / "kernels" / "vino_kernels", ROOT / "export" / "vino_export", ROOT / "vino_rt", ROOT / "bench"]
    assert done.out.split() == [str(tmp_path / "carried.py"), *(str(path / "__init__.py") for path in where)], done.err
