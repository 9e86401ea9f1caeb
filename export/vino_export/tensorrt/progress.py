"""What a build tells while it runs, and how it is stopped."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vino_rt.errors import VinoError


@dataclass(frozen=True)
class BuildStep:
    """`done` of `total` steps of a phase of TensorRT's builder, such as `Timing graph nodes`."""

    phase: str
    done: int
    total: int


def progress_monitor(library: Any, on_step: Callable[[BuildStep], None]) -> Any:
    """An `IProgressMonitor` that calls `on_step` after every step.

    TensorRT calls it, from several threads, through code that no Python error may pass: an error of ours or Ctrl-C in
    `on_step` ends the build and stands in the monitor's `failure` afterwards.
    """

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.failure: VinoError | KeyboardInterrupt | None = None
            self._lock = threading.Lock()
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._totals[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._totals.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            with self._lock:
                if self.failure is not None:
                    return
                try:
                    on_step(BuildStep(phase, done, self._totals.get(phase, done)))
                except (VinoError, KeyboardInterrupt) as error:
                    self.failure = error

    return Monitor()
