"""Results of a function of an index, computed ahead in worker processes and handed out in order.

A worker that dies is replaced and its work done again, which changes nothing as results depend on their index alone.
Not torch's DataLoader: it reports a dead worker by a signal, in the midst of whatever the trainer is doing.
"""

import itertools
import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from vino_rt.errors import VinoError

Result = TypeVar("Result")
AHEAD = 2
"""Results that each worker has ready or under way."""
_PATIENCE = 5.0


class LostWorker(VinoError):
    """Workers died again and again over one index."""

    def __init__(self, index: int, code: int | None) -> None:
        super().__init__(
            f"data workers died twice over micro-batch {index} (exit code {code}; -9 is killed, often for lack of "
            "memory: take fewer workers or a smaller batch)"
        )


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


def ordered(
    load: Callable[[int], Result], indices: Iterable[int], workers: int
) -> Generator[Result | VinoError, None, None]:
    """`load(index)` for every index, in order; a VinoError that `load` raises is handed over as its result.

    Workers are forked when the first result is asked for, so that what `load` holds is shared and not copied: it must
    leave a GPU alone. With 0 workers it runs here. Raises LostWorker naming the index when workers die over it twice.
    """
    indices = iter(indices)
    if workers == 0:
        yield from (_attempt(load, index) for index in indices)
        return
    turns = itertools.cycle(range(workers))
    crew = [_hire(load) for _ in range(workers)]
    pending: deque[tuple[int, int]] = deque()
    failed = None
    try:
        while True:
            for index in itertools.islice(indices, workers * AHEAD - len(pending)):
                pending.append((index, next(turns)))
                _ask(crew[pending[-1][1]], index)
            if not pending:
                return
            index, worker = pending[0]
            try:
                result: Result | VinoError = pickle.loads(crew[worker].pipe.recv_bytes())
            except (EOFError, OSError):
                code = crew[worker].stop(_PATIENCE)
                if failed == index:
                    raise LostWorker(index, code) from None
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
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(load, theirs, ours), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _ask(worker: _Worker, index: int) -> None:
    try:
        worker.pipe.send(index)
    except OSError:
        # It is dead; reading its answer will find out, in the order of the results.
        return


def _serve(load: Callable[[int], Result], pipe: Connection, other: Connection) -> None:
    """A worker's life: answer indices until the trainer's end of the pipe closes.

    Ctrl-C is for the trainer, which ends its workers; SIGTERM ends a worker as it would any process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The copy of the trainer's end would keep the pipe open when the trainer is gone; threads do not survive a fork.
    other.close()
    torch.set_num_threads(1)
    try:
        while True:
            # By value: tensors in shared memory would be lost with the worker.
            pipe.send_bytes(pickle.dumps(_attempt(load, pipe.recv()), protocol=5))
    except (EOFError, OSError):
        return


def _attempt(load: Callable[[int], Result], index: int) -> Result | VinoError:
    try:
        return load(index)
    except VinoError as error:
        return error
