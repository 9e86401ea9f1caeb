"""Micro-batches in the order of their indices, made in this process or ahead of time in others.

It knows that an index gives a micro-batch, not what one is.
"""

import re
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vino_rt.errors import VinoError
from vino_rt.train.objective import Objective

AHEAD = 2
"""Micro-batches that a worker makes before they are asked for."""
LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", re.DOTALL)


@dataclass(frozen=True)
class _Refused:
    """An error of ours on its way out of a worker, which would otherwise arrive as a traceback in a text."""

    kind: type[VinoError]
    message: str


class _Indexed(Dataset[Any]):
    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __getitem__(self, index: int) -> Any:
        try:
            return self._objective.batch(index)
        except VinoError as error:
            return _Refused(type(error), str(error))


def feed(
    objective: Objective, indices: Iterable[int], workers: int, device: torch.device
) -> Generator[Any, None, None]:
    """The micro-batches of `indices` in their order, on `device`; `workers` = 0 makes each when it is asked for.

    Workers are forked when the first one is asked for, so that the objective's model is shared and not copied.
    """
    if workers == 0:
        for index in indices:
            yield to_device(objective.batch(index), device)
        return
    loader = DataLoader(
        _Indexed(objective),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork",
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, _Refused):
            raise batch.kind(batch.message)
        yield to_device(batch, device)


@contextmanager
def lost_workers(kept: Callable[[], str]) -> Iterator[None]:
    """Turn PyTorch's report of a dead worker, which may come at any moment, into an error that says what is `kept`."""
    try:
        yield
    except RuntimeError as error:
        # A report that comes while a batch is waited for is wrapped in one that does not say how the worker died.
        lost = LOST_WORKER.search(str(error.__cause__)) or LOST_WORKER.search(str(error))
        if lost is None:
            raise
        how = lost[2].partition("\n")[0].strip(" .") or "ended"
        raise VinoError(
            f"data worker process {lost[1]} {how}; {kept()}. Run the same command to go on; where memory ran out, take "
            "fewer workers"
        ) from error


def to_device(tree: Any, device: torch.device) -> Any:
    """The same tree of mappings, sequences and dataclasses with its tensors on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(value, device) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(to_device(value, device) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: to_device(getattr(tree, f.name), device) for f in fields(tree) if f.init})
    return tree


def sample_keys(batch: Any) -> tuple[str, ...]:
    """Names of the samples of a micro-batch, empty where it has none."""
    keys = batch.get("keys") if isinstance(batch, Mapping) else getattr(batch, "keys", None)
    return tuple(map(str, keys)) if isinstance(keys, list | tuple) else ()


def fault_count(batch: Any) -> int:
    """Samples of a micro-batch that stand in for broken ones; 0 where it does not say."""
    faults = batch.get("faults") if isinstance(batch, Mapping) else getattr(batch, "faults", None)
    return len(faults) if isinstance(faults, list | tuple) else 0


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """Ctrl-C is for the training process, which ends its workers; SIGTERM ends a worker as it would any process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
