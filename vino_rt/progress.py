"""Progress, timings and cancellation of one request; knows nothing of what the stages compute."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from vino_rt.errors import Cancelled, InputError


@dataclass(frozen=True)
class Progress:
    """`done` of `total` parts of a stage are finished.

    The stages of `Runtime.generate`: prepare (one part), condition (prompts embedded, each layer of the vision-language
    model, the connector, each reference encoded), denoise (steps) and decode (tiles). What is kept of an earlier
    request counts as done at once. Those of `Captioner.understand`: read (the prompt embedded, each layer), answer
    (tokens, `total` is the most there may be).
    """

    stage: str
    done: int
    total: int


OnPart = Callable[[int, int], None]
"""Called with the numbers of finished parts of a stage and of all its parts."""


@dataclass
class RequestMonitor:
    """Times the stages of one request, reports them to the caller, and stops the request when it is cancelled."""

    on_step: Callable[[Progress], None] | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""

    @classmethod
    def of(cls, on_step: Callable[[Progress], None] | None, cancel: threading.Event | None) -> Self:
        """A monitor for what a caller passed; InputError for what is no function or no event."""
        if on_step is not None and not callable(on_step):
            raise InputError(f"on_step is {on_step!r}; give a function of one Progress, or None")
        if cancel is None:
            return cls(on_step)
        # Not by type: events of other libraries serve as well.
        if not hasattr(cancel, "is_set"):
            raise InputError(f"cancel is {cancel!r}; give a threading.Event, or None")
        return cls(on_step, cancel)

    def check(self) -> None:
        """Raise Cancelled if the caller has set `cancel`."""
        if self.cancel.is_set():
            raise Cancelled("cancelled; nothing was written")

    def report(self, stage: str, done: int, total: int) -> None:
        """Report the progress of a stage to the caller, then check for cancellation."""
        if self.on_step is not None:
            self.on_step(Progress(stage, done, total))
        self.check()

    def reporter(self, stage: str) -> OnPart:
        """A callback that reports progress of this stage."""
        return partial(self.report, stage)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as a stage; the body reports its own progress."""
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start

    @contextmanager
    def whole_stage(self, name: str) -> Iterator[None]:
        """Time the body as a stage of a single part, and report its start and end."""
        with self.stage(name):
            self.report(name, 0, 1)
            yield
            self.report(name, 1, 1)
