"""Timing on a GPU by its own clock, in rounds, caches cold; and what it can do at best: copying, multiplying.

A call is timed between two CUDA events, behind reads that fill the second-level cache with other data and last longer
than the host takes to issue the call, so that the GPU never waits for Python in between. They only read: behind writes
the call would also pay for writing the cache's modified lines back to memory.

A kernel that moves a few megabytes runs for less than five microseconds, of which events and the launch take two. So
what only moves memory is recorded as a CUDA graph of many launches, each on inputs and outputs of its own, together
larger than the cache several times, and its time is that of the graph over their number. It contains the pause between
two kernels, as the steps of a model do. Its ceiling is a copy of as many bytes, timed the same way in the same rounds:
a large copy hides that pause.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.harness import Timing, interleave

Call = Callable[[], Any]
FLUSHED = 1 << 28
"""Bytes read before each call: several times the second-level cache of a Hopper GPU (50 to 60 MB)."""
MOST_FLUSHES = 64
COVER = 2.0
"""The flush lasts this many times as long as the host takes to issue the call."""
ROTATED = 1 << 30
"""Bytes that the launches of one graph move together."""
MOST_LAUNCHES = 128


@dataclass(frozen=True, eq=False)
class Launches:
    """So many launches that are called, and timed, as one."""

    replay: Call
    count: int

    def __call__(self) -> None:
        """Make all of them."""
        self.replay()


def launches_for(moved: float) -> int:
    """How many launches of a call that moves so many bytes one graph holds."""
    return max(2, min(MOST_LAUNCHES, round(ROTATED / moved + 0.5)))


class Graphs:
    """Records calls on a CUDA device; on another they stay a loop. The graphs lie in one pool: none reads another's."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, calls: Sequence[Call]) -> Launches:
        """Calls one after another, each of which has run before; RuntimeError where one cannot be recorded."""
        if self._pool is None:
            return Launches(lambda: [call() for call in calls], len(calls))
        graph, made = torch.cuda.CUDAGraph(), []
        with torch.cuda.graph(graph, self._pool):
            # Kept to the end, so that each call writes to memory of its own.
            made += [call() for call in calls]
        return Launches(graph.replay, len(calls))


def per_launch(timings: Mapping[str, Timing], calls: Mapping[str, Call]) -> dict[str, Timing]:
    """The same timings, those of several launches divided by their number."""
    counts = {name: call.count for name, call in calls.items() if isinstance(call, Launches)}
    return {
        name: Timing(tuple(taken / counts.get(name, 1) for taken in timing.seconds)) for name, timing in timings.items()
    }


class GpuClock:
    """Times calls on the current CUDA device."""

    def __init__(self) -> None:
        self._buffer = torch.zeros(FLUSHED // 4 // 4096, 4096, device="cuda")
        self._largest = torch.empty(len(self._buffer), device="cuda")
        self._flush_seconds = min(self._timed(self._flush, 0) for _ in range(3))

    def _flush(self) -> None:
        torch.amax(self._buffer, 1, out=self._largest)

    def interleave(self, calls: Mapping[str, Call], *, repeats: int, warmup: int = 3) -> dict[str, Timing]:
        """Seconds on the GPU of every call in every round, each round in another order; compiles in the warm-up."""
        names = list(calls)
        flushes = {name: self._flushes(calls[name], warmup) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(repeats):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(self._timed(calls[name], flushes[name]))
        print(f"{repeats} rounds of {len(names)} calls", file=sys.stderr, flush=True)
        return {name: Timing(tuple(taken)) for name, taken in seconds.items()}

    def _flushes(self, call: Call, warmup: int) -> int:
        """Warm a call up and find how many flushes cover the host's part of it."""
        taken = float("inf")
        for _ in range(warmup):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            taken = min(taken, time.perf_counter() - start)
        return max(1, min(MOST_FLUSHES, round(COVER * taken / self._flush_seconds + 0.5)))

    def _timed(self, call: Call, flushes: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        for _ in range(flushes):
            self._flush()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class HostClock:
    """Times calls on the CPU."""

    def interleave(self, calls: Mapping[str, Call], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
        """Seconds of every call in every round."""
        return interleave(calls, repeats=repeats, warmup=warmup)


Clock = GpuClock | HostClock


def clock_of(device: torch.device) -> Clock:
    """The one that times calls on a device."""
    return GpuClock() if device.type == "cuda" else HostClock()


@dataclass(frozen=True)
class Best:
    """What the machine was measured to do in the rounds of a series."""

    bandwidth: float
    """Bytes a second, read and written, of one large copy."""
    rates: Mapping[torch.dtype, float]
    """Floating-point operations a second of one large matrix product."""
    copies: Mapping[float, float]
    """Bytes that a call moves -> bytes a second of the faster copy that moves as many."""


@dataclass(frozen=True)
class Probes:
    """Calls that show what is possible, to be timed in the same rounds as what is held against them."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    side: int
    """Of the square matrices that are multiplied."""
    bytes: int
    """That are copied: read once and written once."""
    moved: tuple[float, ...] = ()
    """Bytes that the calls move which are held against copies."""

    def calls(self, graphs: Graphs | None = None) -> dict[str, Call]:
        """By name; hand their timings to `best`. `graphs` records the copies of `moved`."""
        source, target = (torch.zeros(self.bytes // 4, device=self.device) for _ in range(2))
        found: dict[str, Call] = {"ceiling: copy": lambda: target.copy_(source)}
        for dtype in self.dtypes:
            found[f"ceiling: product, {dtype}"] = self._product(dtype)
        for moved in self.moved:
            assert graphs is not None, "copies of given sizes are recorded"
            found |= self._copies(moved, graphs)
        return found

    def _product(self, dtype: torch.dtype) -> Call:
        a, b = (torch.randn(self.side, self.side, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    def _copies(self, moved: float, graphs: Graphs) -> dict[str, Call]:
        """By the driver and by a kernel, whichever is faster at this size."""
        numbers, count = max(1, round(moved / 8)), launches_for(moved)
        sources, targets = (torch.zeros(count, numbers, device=self.device) for _ in range(2))
        pairs = list(zip(sources, targets, strict=True))
        ways: dict[str, list[Call]] = {
            "driver": [partial(target.copy_, source) for source, target in pairs],
            "kernel": [partial(torch.neg, source, out=target) for source, target in pairs],
        }
        for calls in ways.values():
            calls[0]()
        return {_copy(moved, way): graphs.record(calls) for way, calls in ways.items()}

    def best(self, timings: Mapping[str, Timing]) -> Best:
        """From the medians of the calls, those of recorded ones per launch."""
        work = 2.0 * self.side**3
        rates = {dtype: work / timings[f"ceiling: product, {dtype}"].median for dtype in self.dtypes}
        copies = {
            moved: moved / min(timings[_copy(moved, way)].median for way in ("driver", "kernel"))
            for moved in self.moved
        }
        return Best(2.0 * self.bytes / timings["ceiling: copy"].median, rates, copies)


def _copy(moved: float, way: str) -> str:
    return f"ceiling: copy, {moved:.0f} bytes moved, by {way}"
