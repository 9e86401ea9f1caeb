"""What the host does while a GPU makes denoise steps, and what it costs to go from one bucket to another.

A step that was recorded is launched by one call. The host must not wait for the GPU inside a step, and what it computes
between two steps must not keep the GPU waiting; both are measured here on steps that exist already.
"""

import itertools
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bench.harness import CheckFailed, Mark, Measure, summary
from vino_rt.kernels import kernel_end
from vino_rt.models.vino.transformer import BoundPlans
from vino_rt.schedule import Schedule
from vino_rt.step import GuidedStep, Record, StepCache, Work

ROUNDS = 8
MIX = (5.0, 1.5)
"""Guidance of the prompt and of the images."""
NO_WAIT = Mark(0.0, "", "required: at most")
SWITCH = Mark(50.0, "ms", "required: at most")
SYNCHRONISES = "synchronizing CUDA operation"
"""In the warning of PyTorch's debug mode for an operation that waits for the GPU."""


def host_rows(steps: Mapping[str, GuidedStep], label: str, device: torch.device) -> Iterator[Measure]:
    """Rows of steps by how they run, which make `ROUNDS` more of them each.

    The wait of a replay for the one before it, by which the host keeps pace with the GPU, is no synchronisation in
    PyTorch's count: it is before a step, not in it. What it costs the host is in its processor time.
    """
    for name, step in steps.items():
        case = f"step, {name}"
        if device.type == "cuda":
            yield Measure(label, f"{case}: synchronisations", _synchronisations(step.advance), "", None, NO_WAIT)
        launches = [1e3 * _launch(step.advance, device) for _ in range(ROUNDS)]
        yield summary(launches, label, f"{case}: host, until it is launched", "ms")
        alone = statistics.median(_elapsed(step.advance, device) for _ in range(ROUNDS))
        busy, periods = _in_a_row(step.advance, device)
        yield Measure(label, f"{case}: host, processor time in a row of steps", 100 * busy, "%")
        shares = [period / alone for period in periods]
        yield summary(shares, label, f"{case}: period in a row / launched and waited for", "x")


def switch_rows(
    requests: Mapping[str, tuple[BoundPlans, Tensor]], schedule: Schedule, device: torch.device, record: Record
) -> Iterator[Measure]:
    """Time from a request of one bucket to the first step in another, above that of a step; by bucket."""
    recorded: list[Work] = []

    def counted(work: Work) -> Work:
        recorded.append(work)
        return record(work)

    steps = StepCache(len(requests), counted, kernel_end())

    def ask(name: str) -> tuple[float, float]:
        """Seconds from asking to the end of the first step, and of the second step."""
        model, start = requests[name]
        begun = time.perf_counter()
        step = steps.get(model, start, schedule, MIX)
        step.begin(start)
        first = _elapsed(step.advance, device, begun)
        return first, _elapsed(step.advance, device)

    # The most rows first, as a runtime warms up: all requests lie in the memory of the largest.
    names = sorted(requests, key=lambda name: -requests[name][1].numel())
    for name in names:
        ask(name)
    switches: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            first, second = ask(name)
            switches[name].append(1e3 * (first - second))
    if len(recorded) > len(names):
        raise CheckFailed(f"{len(recorded)} steps were recorded for {len(names)} buckets")
    for name, taken in switches.items():
        yield summary(taken, name, "switch of buckets, until its first step, without that step", "ms", SWITCH)


def _synchronisations(call: Work) -> int:
    """How many operations of a call wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONISES in str(warning.message) for warning in told)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _launch(call: Work, device: torch.device) -> float:
    """Seconds until a call returns, with nothing on the GPU before it."""
    _wait(device)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _elapsed(call: Work, device: torch.device, start: float | None = None) -> float:
    """Seconds until the GPU has done what a call asks, from `start` or from an idle GPU on."""
    if start is None:
        _wait(device)
        start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _in_a_row(call: Work, device: torch.device) -> tuple[float, Sequence[float]]:
    """Share of the time that this thread's processor works in a row of calls; seconds from the end of each to the next.

    The ends are those on the GPU.
    """
    events = [_Mark(device) for _ in range(ROUNDS + 1)]
    _wait(device)
    events[0].set()
    start, used = time.perf_counter(), time.thread_time()
    for event in events[1:]:
        call()
        event.set()
    used = time.thread_time() - used
    _wait(device)
    taken = time.perf_counter() - start
    return used / taken, [one.until(other) for one, other in itertools.pairwise(events)]


class _Mark:
    """A point in what a device does."""

    def __init__(self, device: torch.device) -> None:
        made = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._event, self._host = made, 0.0

    def set(self) -> None:
        """Put it behind what the device was told so far."""
        self._host = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def until(self, other: "_Mark") -> float:
        """Seconds between two that were passed."""
        if self._event is None or other._event is None:
            return other._host - self._host
        return float(self._event.elapsed_time(other._event)) / 1e3
