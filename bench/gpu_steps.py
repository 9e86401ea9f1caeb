"""Steps of `bench gpu`, each a process of its own, within a budget of time: what does not fit is left out and told.

A process that crashes the driver's context, or hangs, takes nothing else with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.harness import ROOT

SECONDS = "{seconds}"
"""In a command: the seconds it is given, less `Step.reserve`."""


@dataclass(frozen=True)
class Step:
    """A command and the time it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    """Seconds after which it is ended."""
    least: float
    """Seconds that must be left for it to be begun."""
    reserve: float = 0.0
    """Seconds between what the command is told by `SECONDS` and its end."""
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""
    """Why it cannot be run at all; empty where it can."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None when it was ended because its time was over."""
    out: str
    err: str


@dataclass(frozen=True)
class Done:
    """What became of a step."""

    step: Step
    seconds: float = 0.0
    ended: Ended | None = None
    skipped: str = ""
    """Why it was not begun."""


Execute = Callable[[Sequence[str], Mapping[str, str], float], Ended]
"""Runs a command with additions to the environment for at most so many seconds."""


def run_steps(
    steps: Sequence[Step], budget: float, execute: Execute, clock: Callable[[], float] = time.monotonic
) -> Iterator[Done]:
    """Run steps in order until the budget (seconds) is used up; hands back every step, run or not."""
    start = clock()
    for step in steps:
        left = budget - (clock() - start)
        if step.absent:
            yield Done(step, skipped=step.absent)
        elif left < step.least:
            yield Done(
                step, skipped=f"{max(left, 0):.0f} s are left of {budget:.0f}, it takes at least {step.least:.0f}"
            )
        else:
            given = min(step.limit, left)
            told = f"{max(given - step.reserve, 0):.0f}"
            print(f"{step.name}: at most {given:.0f} s", file=sys.stderr, flush=True)
            begun = clock()
            ended = execute([part.replace(SECONDS, told) for part in step.command], step.environment, given)
            yield Done(step, clock() - begun, ended)


def execute(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Ended:
    """Run a command in the checkout and end it, with every process it began, when its time is over."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            out, err = process.communicate()
            return Ended(None, out, err)
        except BaseException:
            _end(process)
            raise
    return Ended(process.returncode, out, err)


def _end(process: "subprocess.Popen[str]") -> None:
    """The group that `start_new_session` made; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
