"""Ctrl-C or SIGTERM while a request runs: the first asks it to stop, the second stops at once; knows no request."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets while the body runs; a second Ctrl-C raises KeyboardInterrupt.

    Outside the main thread Python delivers no signals; the event is then the caller's alone.
    """
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_terminate() -> None:
    """Let SIGTERM end the process as Ctrl-C does: what is half done is undone first."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
