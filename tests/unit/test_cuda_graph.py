"""Recording a step as a CUDA graph, over a stand-in that says in which order `torch.cuda` is called.

What graphs do on a GPU is not tested here and has not run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from vino_rt.backends import cuda_graph
from vino_rt.errors import EngineError, OutOfMemory


class FakeCuda:
    """Streams, events and graphs that write down what is asked of them; inside `graph` work is recorded, not run."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools = 0
        self.recorded: list[Any] = []

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
        yield

    @contextmanager
    def graph(self, graph: "Said", *, pool: int, stream: "Said") -> Iterator[None]:
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
        "record in pool 1 on side stream", "work", "recorded", "stream: wait_stream",
    ]  # fmt: skip
    cuda.log.clear()
    replay()
    replay()
    # A replay waits for the one before it and for nothing else.
    assert cuda.log == 2 * ["event: synchronize", "graph: replay", "event: record"]


def test_all_graphs_share_a_pool(cuda: FakeCuda) -> None:
    record = recorder()
    for _ in range(3):
        record(lambda: None)
    assert cuda.pools == 1
    assert cuda.log.count("record in pool 1 on side stream") == 3


@pytest.mark.parametrize(
    ("raised", "told", "message"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), EngineError, "set cuda_graphs = false"),
        (torch.OutOfMemoryError("tried to allocate"), OutOfMemory, "take a smaller size or bucket"),
    ],
)
def test_what_cannot_be_recorded_is_told(
    cuda: FakeCuda, raised: Exception, told: type[Exception], message: str
) -> None:
    def work() -> None:
        if cuda.log[-1].startswith("record"):
            raise raised

    with pytest.raises(told, match=message) as caught:
        recorder()(work)
    assert caught.value.__cause__ is raised
