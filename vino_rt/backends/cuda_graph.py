"""Work on fixed memory as a CUDA graph: recorded once, then replayed by one launch. Knows neither model nor engine.

Not run on a GPU yet: the tests drive it over a stand-in of `torch.cuda`.
"""

from collections.abc import Callable
from typing import Any

import torch

from vino_rt.errors import EngineError, OutOfMemory

Work = Callable[[], None]
ADVICE = "set cuda_graphs = false in the recipe to launch each operation from the host instead"


class Recorder:
    """Records graphs of one device, which share a pool of memory because only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Run `work` once, then record it; the function returned replays it.

        Replaying waits for the replay before it, so that the host is never more than a step ahead of what it reports.
        Raises EngineError when the work cannot be recorded, such as when it waits for the device, and OutOfMemory.
        """
        stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            # Libraries prepare themselves and kernels are compiled by a first call, which no graph can hold.
            with torch.cuda.stream(stream):
                work()
            stream.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                work()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"no memory to record a denoise step: {error}; take a smaller size or bucket") from error
        except RuntimeError as error:
            raise EngineError(f"a denoise step cannot be recorded as a CUDA graph: {error}; {ADVICE}") from error
        torch.cuda.current_stream(self._device).wait_stream(stream)
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

        def replay() -> None:
            done.synchronize()
            graph.replay()
            done.record()

        return replay
