"""Recording a step as a CUDA graph, over a stand-in that says in which order `torch.cuda` is called.

The last tests are of what graphs do on a GPU, and have not run.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vino_rt.backends import cuda_graph
from vino_rt.errors import EngineError, OutOfMemory


class FakeCuda:
    """Streams, events and graphs that write down what is asked of them; inside `graph` work is recorded, not run."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools = 0
        self.streams: list[Said] = []

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def __getattr__(self, name: str) -> Any:
        made = {"Stream": "side stream", "Event": "event", "CUDAGraph": "graph", "current_stream": "stream"}
        if name not in made:
            raise AttributeError(name)
        return lambda *_: Said(made[name], self.log)

    @contextmanager
    def stream(self, stream: "Said") -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        try:
            yield
        finally:
            self.log.append(f"off {stream.name}")

    @contextmanager
    def graph(self, graph: "Said", pool: int, stream: "Said", *, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "other threads may use the GPU meanwhile"
        self.streams.append(stream)
        self.log.append(f"record in pool {pool} on {stream.name}")
        yield
        self.log.append("recorded")


class Said:
    """An object every method of which is a line in the log."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def __getattr__(self, method: str) -> Any:
        return lambda *_: self._log.append(f"{self.name}: {method}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def recorder() -> cuda_graph.Recorder:
    return cuda_graph.Recorder(torch.device("cuda", 0))


def test_work_runs_once_then_is_recorded_then_replayed(cuda: FakeCuda) -> None:
    replay = recorder()(lambda: cuda.log.append("work"))
    assert cuda.log == [
        "side stream: wait_stream", "on side stream", "work", "side stream: synchronize",
        "record in pool 1 on side stream", "work", "recorded", "off side stream", "stream: wait_stream",
    ]  # fmt: skip
    cuda.log.clear()
    replay()
    replay()
    # A replay waits for the one before it and for nothing else.
    assert cuda.log == 2 * ["event: synchronize", "graph: replay", "event: record"]


def test_all_graphs_share_a_pool_and_the_stream_that_it_is_used_on(cuda: FakeCuda) -> None:
    record = recorder()
    for _ in range(3):
        record(lambda: None)
    assert cuda.pools == 1
    assert cuda.log.count("record in pool 1 on side stream") == 3
    # A block of a pool is only used again on the stream that it was taken on.
    assert len(set(map(id, cuda.streams))) == 1


@pytest.mark.parametrize(
    ("raised", "told", "message"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), EngineError, "set cuda_graphs = false"),
        (torch.OutOfMemoryError("tried to allocate"), OutOfMemory, "take a smaller size or bucket"),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory, "take a smaller size or bucket"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), OutOfMemory, "take a smaller size or bucket"),
    ],
)
def test_what_cannot_be_recorded_is_told(
    cuda: FakeCuda, raised: Exception, told: type[Exception], message: str
) -> None:
    taken: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activations = torch.zeros(1)
        taken.append(weakref.ref(activations))
        if cuda.log[-1].startswith("record"):
            raise raised

    with pytest.raises(told, match=message) as caught:
        recorder()(work)
    assert caught.value.__cause__ is raised
    assert cuda.log[-1] == "off side stream"
    assert [tensor() for tensor in taken] == [None, None], "who keeps the error keeps no tensors"


def test_a_step_that_fails_before_it_is_recorded_is_not_blamed_on_graphs(cuda: FakeCuda) -> None:
    def work() -> None:
        raise RuntimeError("a kernel cannot be compiled")

    with pytest.raises(EngineError, match="failed before it was recorded: a kernel cannot be compiled") as caught:
        recorder()(work)
    assert "cuda_graphs" not in str(caught.value)
    assert not any(line.startswith("record") for line in cuda.log)


def test_two_threads_record_one_after_the_other(cuda: FakeCuda) -> None:
    begun, seen = threading.Event(), list[int]()

    def slow() -> None:
        if cuda.log[-1].startswith("record"):
            begun.set()
            time.sleep(0.2)
            seen.append(cuda.log.count("record in pool 1 on side stream"))

    record = recorder()
    thread = threading.Thread(target=record, args=(slow,))
    thread.start()
    assert begun.wait(30)
    record(lambda: None)
    thread.join()
    assert seen == [1]
    assert cuda.log.count("record in pool 1 on side stream") == 2


def doubling(out: Tensor, size: int, seen: list[bool]) -> Callable[[], None]:
    """Work that takes `size` bytes while it runs, and notes whether it was recorded."""

    def work() -> None:
        seen.append(torch.cuda.is_current_stream_capturing())
        large = torch.ones(size, dtype=torch.uint8, device=out.device)
        out.mul_(1 + large[-1])

    return work


@pytest.mark.gpu
def test_on_a_gpu_graphs_share_their_memory() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    record, out, seen = cuda_graph.Recorder(device), torch.ones(1, device=device), list[bool]()
    one = record(doubling(out, 64 << 20, seen))
    before, stream = torch.cuda.memory_reserved(device), torch.cuda.current_stream(device)
    two = record(doubling(out, 64 << 20, seen))
    assert torch.cuda.memory_reserved(device) <= before
    assert torch.cuda.current_stream(device) == stream
    assert seen == [False, True, False, True]
    assert out.item() == 4, "recording runs nothing"
    for replay in (one, two, two):
        replay()
    assert out.item() == 32


@pytest.mark.gpu
def test_on_a_gpu_there_is_room_again_after_there_was_none() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    record, out = cuda_graph.Recorder(device), torch.ones(1, device=device)

    def greedy() -> None:
        large = torch.ones(64 << 20, dtype=torch.uint8, device=device)
        if torch.cuda.is_current_stream_capturing():
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        out.mul_(1 + large[-1])

    stream, kept = torch.cuda.current_stream(device), list[Exception]()
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="no memory to record a denoise step") as caught:
            record(greedy)
        kept.append(caught.value)
    assert torch.cuda.current_stream(device) == stream
    replay = record(doubling(out, 1 << 20, []))
    replay()
    assert out.item() == 16
