"""Progress reports of a running build, and how to stop it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SECONDS = 0.1
"""Seconds between two checks for Ctrl-C in the caller's thread while another thread builds."""


@dataclass(frozen=True)
class BuildStep:
    """`done` of `total` steps of a phase of TensorRT's builder, such as `Timing graph nodes`."""

    phase: str
    done: int
    total: int


class Kept:
    """A context manager that suppresses every exception and remembers the first.

    For callbacks of TensorRT and code of threads, which have no caller to raise to.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = self.error or error
        return True


def progress_monitor(library: Any, on_step: Callable[[BuildStep], None]) -> Any:
    """An `IProgressMonitor` that calls `on_step` after every step.

    TensorRT calls it from several threads, through code that Python exceptions must not cross: an exception from
    `on_step` is stored in `failures`, and any failure stored there ends the build.
    """

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.failures = Kept()
            self._lock = threading.Lock()
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._totals[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.failures.error is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._totals.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            with self._lock:
                if self.failures.error is None:
                    with self.failures:
                        on_step(BuildStep(phase, done, self._totals.get(phase, done)))

    return Monitor()


def run_aside(work: Callable[[], T], monitor: Any) -> T:
    """Run a build in a separate thread and return its result; raises what it raised, or the monitor's failure.

    Python handles signals in the main thread between bytecode instructions, and a call of TensorRT is a single
    instruction. So the caller's thread waits here: an exception raised by a signal handler is stored as a failure, and
    the build ends at its next step.
    """
    result: list[T] = []
    own: Kept = Kept()
    # PyTorch's current device is a setting per thread.
    place = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        with own:
            if place is not None:
                torch.cuda.set_device(place)
            result.append(work())

    thread = threading.Thread(target=run, name="TensorRT build")
    thread.start()
    while thread.is_alive():
        with monitor.failures:
            thread.join(SECONDS)
    if (failure := monitor.failures.error or own.error) is not None:
        raise failure
    return result[0]
