"""What `bench gpu` measures of whole steps and requests, run on the CPU with stand-ins for what takes a GPU."""

import json
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from bench import gpu_full, gpu_host, gpu_requests, gpu_rows
from bench.harness import CheckFailed, Mark, Measure
from vino_rt.models.vino.tables import transformer_table
from vino_rt.request import Request
from vino_rt.runtime import Runtime

CPU = torch.device("cpu")


def test_what_misses_its_limit_is_told_behind_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    limit = Mark(50.0, "ms", "required: at most")

    def measures() -> Any:
        yield Measure("a", "switch", 51.0, "ms", None, limit)
        yield Measure("b", "switch", 50.0, "ms", None, limit)
        raise CheckFailed("c: wrong")

    assert gpu_rows.write_rows("step", "full size", measures()) == 1
    told = capsys.readouterr()
    assert [json.loads(line)["case"] for line in told.out.splitlines()] == ["a", "b"]
    assert told.err.splitlines() == [
        "full size: a: switch is 51 ms, required: at most 50 ms",
        "full size: c: wrong",
    ]
    assert gpu_rows.write_rows("step", "full size", [Measure("a", "x", 2.0, "", None, Mark(1.0, "", "limit"))]) == 0


def test_a_full_size_step_is_measured_and_checked() -> None:
    sizes = gpu_full.quick_size()
    rows = list(gpu_full.measures(CPU, sizes, lambda work: work))
    ways = [f"step, {way}{share}" for way in ("plain launches", "replayed") for share in ("", " / matrix rate")]
    timed = [row for row in rows if row.metric in ways or row.metric.startswith("ceiling")]
    metrics = ["ceiling: product, bfloat16", *ways]
    assert [(row.case, row.metric) for row in timed] == [(case.label, name) for case in sizes.cases for name in metrics]
    assert all(row.value > 0 for row in timed)
    host = {row.metric.partition(": ")[2] for row in rows if ": host" in row.metric or "period" in row.metric}
    assert {"host, until it is launched", "host, processor time in a row of steps"} <= host
    switches = [row for row in rows if row.metric.startswith("switch of buckets")]
    assert {row.case for row in switches} == {case.label for case in sizes.cases}
    assert all(row.ceiling == gpu_host.SWITCH for row in switches)


def test_a_wrong_replay_is_told_and_other_cases_are_measured() -> None:
    calls = []

    def record(work: Any) -> Any:
        calls.append(work)
        return (lambda: None) if len(calls) == 1 else work

    sizes, found = gpu_full.quick_size(), []

    def measured() -> None:
        for row in gpu_full.measures(CPU, sizes, record):
            found.append(row.case)

    with pytest.raises(CheckFailed, match="1 branch: 3 replayed steps are not those of plain launches"):
        measured()
    assert sizes.cases[1].label in found


def test_what_waits_for_the_gpu_in_a_step_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played without a GPU: the modes that are set, and what PyTorch would warn of."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation (from somewhere)", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (from somewhere)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert gpu_host._synchronisations(waits) == 2
    assert gpu_host._synchronisations(lambda: None) == 0
    assert modes == ["warn", "default"] * 2


class Answering:
    """A runtime that is slow for its first request of each kind."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append(Request(prompt="closed"))

    def generate(self, request: Request) -> None:
        first = request.task not in [other.task for other in self.asked]
        self.asked.append(request)
        time.sleep(0.5 if first else 0.01)


def test_the_first_request_is_held_against_later_ones() -> None:
    runtime = Answering()
    rows = list(gpu_requests.measures(cast(Callable[[], Runtime], lambda: runtime), 3, 1))
    metrics = ("first request after warm-up", "later requests", "first request / later ones")
    assert [(row.case, row.metric) for row in rows] == [
        ("runtime", "open and warm up"), *[(case, metric) for case in ("picture", "clip") for metric in metrics],
    ]  # fmt: skip
    marked = [row for row in rows if row.ceiling]
    assert [row.ceiling for row in marked] == [gpu_requests.FIRST] * 2
    assert all(gpu_rows.over(row) for row in marked)
    *asked, closed = [request.prompt for request in runtime.asked]
    assert closed == "closed"
    assert len(set(asked)) == 4, "another prompt each time: nothing is found in a cache"
    assert len({len(prompt.split()) for prompt in asked}) == 1


def test_full_size_is_the_released_size() -> None:
    sizes = gpu_full.full_size()
    assert sum(math.prod(shape) for shape in transformer_table(sizes.config).values()) > 12e9
    labels = [case.label for case in sizes.cases]
    assert labels[0] == "27,030 + 640 tokens, 1 branch", "what is required comes before what may not fit"
    assert labels[1] == "1,600 + 640 tokens, 1 branch"
