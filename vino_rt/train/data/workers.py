"""Results of a function of an index, computed ahead in worker processes and handed out in order.

A worker that dies is replaced and its work done again, which changes nothing as results depend on their index alone.
Not torch's DataLoader: it reports a dead worker by a signal, in the midst of whatever the trainer is doing.
"""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, TypeVar

from vino_rt.errors import VinoError

Result = TypeVar("Result")
AHEAD = 2
"""Results that each worker has ready or under way."""
START: Final = "forkserver"
"""A plain fork would copy the locks of the trainer's threads in whatever state they are."""
PRELOAD = "vino_rt.train.data.decode"
_PATIENCE = 5.0


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection

    def stop(self, patience: float = 0.0) -> int | None:
        """End the process unless it ends by itself within `patience` seconds; its exit code."""
        self.pipe.close()
        self.process.join(patience)
        if self.process.exitcode is None:
            # It holds nothing that could be lost.
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def ordered(load: Callable[[int], Result], start: int, stop: int | None, workers: int) -> Iterator[Result | VinoError]:
    """`load(start)`, `load(start + 1)`, ... up to `stop`; a VinoError that `load` raises is handed over as its result.

    `load` is pickled once for each worker; with 0 workers it runs here. Raises VinoError naming the index when workers
    die over it twice.
    """
    indices = itertools.count(start) if stop is None else iter(range(start, stop))
    if workers == 0:
        yield from (_attempt(load, index) for index in indices)
        return
    crew = [_hire(load) for _ in range(workers)]
    pending: deque[tuple[int, int]] = deque()
    failed = None
    try:
        while True:
            for index in itertools.islice(indices, workers * AHEAD - len(pending)):
                pending.append((index, index % workers))
                _ask(crew[index % workers], index)
            if not pending:
                return
            index, worker = pending[0]
            try:
                result = crew[worker].pipe.recv()
            except (EOFError, OSError):
                code = crew[worker].stop(_PATIENCE)
                if failed == index:
                    raise VinoError(
                        f"data workers died twice over batch {index} (exit code {code}; -9 is killed, often for lack "
                        "of memory). Nothing is lost: resume, with fewer workers or fewer tokens in a batch"
                    ) from None
                failed, crew[worker] = index, _hire(load)
                for again, owner in pending:
                    if owner == worker:
                        _ask(crew[worker], again)
                continue
            pending.popleft()
            yield result
    finally:
        for hand in crew:
            hand.stop()


def _hire(load: Callable[[int], Result]) -> _Worker:
    context = multiprocessing.get_context(START)
    # The server that workers are forked from imports this once; else each of them does, for seconds.
    context.set_forkserver_preload([PRELOAD])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(load, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _ask(worker: _Worker, index: int) -> None:
    try:
        worker.pipe.send(index)
    except OSError:
        # It is dead; reading its answer will find out, in the order of the results.
        return


def _serve(load: Callable[[int], Result], pipe: Connection) -> None:
    """A worker's life: answer indices until the other end closes, or Ctrl-C reaches the whole group."""
    try:
        while True:
            pipe.send(_attempt(load, pipe.recv()))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _attempt(load: Callable[[int], Result], index: int) -> Result | VinoError:
    try:
        return load(index)
    except VinoError as error:
        return error
