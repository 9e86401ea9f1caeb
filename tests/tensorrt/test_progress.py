"""A build in a thread of its own: what it gives, what it raises, how a signal stops it."""

import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vino_export.tensorrt.progress import BuildStep, progress_monitor, run_aside

LIBRARY = SimpleNamespace(IProgressMonitor=object)


def nothing(_: BuildStep) -> None:
    """A listener."""


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts: a process in the background may begin with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_build_gives_its_result_from_another_thread() -> None:
    monitor = progress_monitor(LIBRARY, nothing)
    assert run_aside(threading.current_thread, monitor) is not threading.current_thread()


def test_what_a_build_raises_is_raised() -> None:
    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_aside(fail, progress_monitor(LIBRARY, nothing))


def test_a_signal_stops_a_build_that_runs_no_python(ctrl_c: None) -> None:
    """Ctrl-C comes to the main thread, which waits; the build hears of it when it asks whether to go on."""
    monitor = progress_monitor(LIBRARY, nothing)
    steps = 0

    def build() -> str:
        nonlocal steps
        monitor.phase_start("Timing", None, 1000)
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        while monitor.step_complete("Timing", steps):
            steps += 1
            time.sleep(0.01)
            assert steps < 1000
        return "ended"

    with pytest.raises(KeyboardInterrupt):
        run_aside(build, monitor)
    assert steps > 0


def test_the_first_failure_is_kept() -> None:
    def fail(step: BuildStep) -> None:
        raise ValueError(step.done)

    monitor: Any = progress_monitor(LIBRARY, fail)
    monitor.phase_start("Timing", None, 3)
    assert not monitor.step_complete("Timing", 1)
    with monitor.failures:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="0"):
        run_aside(lambda: None, monitor)
