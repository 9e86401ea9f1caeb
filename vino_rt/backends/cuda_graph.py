"""Work on fixed memory as a CUDA graph: recorded once, then replayed by one launch. Knows neither model nor engine.

Not run on a GPU yet: the tests drive it over a stand-in of `torch.cuda`.
"""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.memory import is_shortage

Work = Callable[[], None]
ADVICE = "set cuda_graphs = false in the recipe to launch each operation from the host instead"
ONE_AT_A_TIME = threading.Lock()
"""PyTorch can record only one graph at a time per process."""


@contextmanager
def _explained(told: str) -> Iterator[None]:
    """Turn a RuntimeError into OutOfMemory, or into an EngineError that says `told` with the error in it."""
    try:
        yield
    except RuntimeError as error:
        # What is kept of the error must not keep tensors: the pool is only given back without them.
        traceback.clear_frames(error.__traceback__)
        if is_shortage(error):
            raise OutOfMemory(f"no memory to record a denoise step: {error}; take a smaller size or bucket") from error
        raise EngineError(told.format(error=error)) from error


class Recorder:
    """Records graphs of one device, which share a pool of memory because only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for all graphs: what a capture took from the pool on a stream can be reused only on that stream.
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """Run `work` once, then record it; the function returned replays it.

        Replaying waits for the replay before it, so that the host is never more than a step ahead of what it reports.
        Raises EngineError when the work cannot be recorded, such as when it waits for the device, and OutOfMemory.
        """
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        # Around both: if a capture cannot be ended, PyTorch leaves its stream the current one.
        with torch.cuda.stream(stream):
            # The first call initialises libraries and compiles kernels, which cannot be captured.
            with _explained("a denoise step failed before it was recorded: {error}"):
                work()
                stream.synchronize()
            # Calls that cannot be captured fail in this thread only; other threads may go on using the GPU.
            mode = "thread_local"
            with (
                _explained(f"a denoise step cannot be recorded as a CUDA graph: {{error}}; {ADVICE}"),
                ONE_AT_A_TIME,
                torch.cuda.graph(graph, self._pool, stream, capture_error_mode=mode),
            ):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

        def replay() -> None:
            done.synchronize()
            graph.replay()
            done.record()

        return replay
