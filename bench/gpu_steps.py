"""Steps of `bench gpu`, each a process of its own, within a budget of time: a step that does not fit is left out.

A process that crashes the driver's context, or hangs, takes nothing else with it. What a process prints is handed on
line by line as it comes, so that a step that is ended has lost only what it had not finished.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from bench.harness import ROOT

SECONDS = "{seconds}"
"""In a command: the seconds it is given, less `Step.reserve`."""
IMPORTED = (ROOT, ROOT / "kernels", ROOT / "export")
"""Directories whose packages the processes import: on a borrowed machine the project is not installed."""
DRAIN_SECONDS = 5.0
"""How long the output of a process that has ended is waited for; a daemon that it left behind may hold it open."""


@dataclass(frozen=True)
class Step:
    """A command and the time it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    """Seconds after which it is ended."""
    least: float
    """Seconds that it needs to be of use; steps before it leave it as much."""
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


Hear = Callable[[str], None]
"""Takes a line of a process's output, without its end. Called from several threads at once."""
Execute = Callable[[Sequence[str], Mapping[str, str], float, Hear], Ended]
"""Runs a command with additions to the environment for at most so many seconds."""


def run_steps(
    steps: Sequence[Step], budget: float, execute: Execute, hear: Hear, clock: Callable[[], float] = time.monotonic
) -> Iterator[Done]:
    """Run steps in order within a budget (seconds); hands back every step, run or not.

    A step gets its limit or what is left, but leaves the steps behind it the least that they need.
    """
    start = clock()
    for number, step in enumerate(steps):
        left = budget - (clock() - start)
        later = sum(other.least for other in steps[number + 1 :] if not other.absent)
        if step.absent:
            yield Done(step, skipped=step.absent)
        elif left < step.least:
            yield Done(
                step, skipped=f"{max(left, 0):.0f} s are left of {budget:.0f}, it takes at least {step.least:.0f}"
            )
        else:
            given = min(step.limit, max(step.least, left - later))
            told = f"{max(given - step.reserve, 0):.0f}"
            print(f"{step.name}: at most {given:.0f} s", file=sys.stderr, flush=True)
            begun = clock()
            ended = execute([part.replace(SECONDS, told) for part in step.command], step.environment, given, hear)
            yield Done(step, clock() - begun, ended)


def execute(command: Sequence[str], environment: Mapping[str, str], seconds: float, hear: Hear) -> Ended:
    """Run a command in the checkout and end it, with every process it began, when its time is over."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": import_path(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = _Reader(process.stdout, hear), _Reader(process.stderr, hear)
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
            out.join(DRAIN_SECONDS)
            err.join(DRAIN_SECONDS)
    return Ended(code, out.text, err.text)


def import_path() -> str:
    """`PYTHONPATH` of the processes: the packages of this checkout, then what this process was given."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, IMPORTED), *filter(None, given.split(os.pathsep))])


class _Reader(threading.Thread):
    """Keeps what a process writes to a pipe, and hands each line on as it comes."""

    def __init__(self, pipe: IO[str], hear: Hear) -> None:
        super().__init__(daemon=True)
        self._pipe, self._hear = pipe, hear
        self._lines: list[str] = []
        self.start()

    def run(self) -> None:
        """Read to the end."""
        # The pipe is closed under the reader where a daemon still holds its other end.
        with contextlib.suppress(ValueError, OSError):
            for line in self._pipe:
                self._lines.append(line)
                self._hear(line.rstrip("\n"))

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._lines)


def _end(process: "subprocess.Popen[str]") -> None:
    """The group that `start_new_session` made; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
