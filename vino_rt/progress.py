"""How far a request is, how long its stages took, and whether its caller wants it to end; knows no stage's work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vino_rt.errors import Cancelled


@dataclass(frozen=True)
class Progress:
    """Where a request is: `done` of `total` parts of a stage, the stages being prepare, condition, denoise, decode."""

    stage: str
    done: int
    total: int


@dataclass
class Watch:
    """One request's stages: times them, tells the caller, and stops where the caller asked to."""

    on_step: Callable[[Progress], None]
    cancel: threading.Event
    timings: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise Cancelled when the caller asked to stop."""
        if self.cancel.is_set():
            raise Cancelled("cancelled; nothing was written")

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell the caller how far a stage is, then look at the cancel flag."""
        self.on_step(Progress(stage, done, total))
        self.check()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside under the stage's name."""
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start
