"""`python -m bench.gpu_requests [--quick]`: requests of the bundled model on the CUDA device after its warm-up.

The first request must take no longer than later ones: nothing is left for it to compile, load or record. Every request
has another prompt of the same length, and the runtime keeps nothing of earlier ones. A JSON line a row.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from bench.gpu_place import is_quick
from bench.gpu_rows import write_rows
from bench.harness import Mark, Measure, summary
from vino_rt.request import Request
from vino_rt.runtime import Runtime

COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey", "orange")
TASKS = {"picture": "t2i", "clip": "t2v"}
STEPS, QUICK_STEPS = 20, 2
FIRST = Mark(1.05, "x", "required: at most")


def measures(opened: Callable[[], Runtime], later: int, steps: int) -> Iterator[Measure]:
    """Rows of a runtime that `opened` opens and warms up: for each task the first request beside `later` others."""
    begun = time.perf_counter()
    with opened() as runtime:
        yield Measure("runtime", "open and warm up", time.perf_counter() - begun, "s")
        for case, task in TASKS.items():
            seconds = [_seconds(runtime, request) for request in _requests(task, later + 1, steps)]
            middle = statistics.median(seconds[1:])
            yield Measure(case, "first request after warm-up", 1e3 * seconds[0], "ms")
            yield summary([1e3 * s for s in seconds[1:]], case, "later requests", "ms")
            yield Measure(case, "first request / later ones", seconds[0] / middle, "x", None, FIRST)


def _requests(task: str, count: int, steps: int) -> Sequence[Request]:
    """Prompts that differ in a word."""
    return [Request(prompt=f"a {word} square", task=task, steps=steps, seed=0) for word in COLOURS[:count]]


def _seconds(runtime: Runtime, request: Request) -> float:
    """From the request to its frames, which lie on the host."""
    start = time.perf_counter()
    runtime.generate(request)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    quick = is_quick("bench.gpu_requests", "bench startup", arguments)
    with tempfile.TemporaryDirectory() as scratch:

        def opened() -> Runtime:
            return Runtime.open(recipe="cuda", store=scratch, cache_bytes=0, warm=True)

        later, steps = (2, QUICK_STEPS) if quick else (len(COLOURS) - 1, STEPS)
        return write_rows("requests", "requests", measures(opened, later, steps))


if __name__ == "__main__":
    raise SystemExit(main())
