"""Timing on a GPU by its own clock, in rounds, caches cold; and what it can do at best: copying, multiplying.

A call is timed between two CUDA events, behind writes that flush the second-level cache and last longer than the host
takes to issue the call, so that the GPU never waits for Python in between.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.harness import Timing, interleave

Call = Callable[[], object]
FLUSHED = 1 << 28
"""Bytes written before each call: several times the second-level cache of a Hopper GPU (50 MB)."""
MOST_FLUSHES = 64
COVER = 2.0
"""The flush lasts this many times as long as the host takes to issue the call."""


class GpuClock:
    """Times calls on the current CUDA device."""

    def __init__(self) -> None:
        self._buffer = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        self._buffer.zero_()
        self._flush_seconds = self._timed(self._buffer.zero_, 0)

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
        """Warm a call up and find how many writes cover the host's part of it."""
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
            self._buffer.zero_()
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


@dataclass(frozen=True)
class Probes:
    """Calls that show what is possible, to be timed in the same rounds as what is held against them."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    side: int
    """Of the square matrices that are multiplied."""
    bytes: int
    """That are copied: read once and written once."""

    def calls(self) -> dict[str, Call]:
        """By name; hand their timings to `best`."""
        source, target = (torch.zeros(self.bytes // 4, device=self.device) for _ in range(2))
        found: dict[str, Call] = {"ceiling: copy": lambda: target.copy_(source)}
        for dtype in self.dtypes:
            found[f"ceiling: product, {dtype}"] = self._product(dtype)
        return found

    def _product(self, dtype: torch.dtype) -> Call:
        a, b = (torch.randn(self.side, self.side, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    def best(self, timings: Mapping[str, Timing]) -> Best:
        """From the medians of the calls."""
        work = 2.0 * self.side**3
        rates = {dtype: work / timings[f"ceiling: product, {dtype}"].median for dtype in self.dtypes}
        return Best(2.0 * self.bytes / timings["ceiling: copy"].median, rates)
