"""Micro-batches in the order of their indices, made in this process or ahead of time in others.

It knows that an index gives a micro-batch, not what one is.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vino_rt.errors import VinoError
from vino_rt.train.objective import Objective
from vino_rt.train.workers import LostWorker, ordered


def feed(
    objective: Objective, indices: Iterable[int], workers: int, device: torch.device
) -> Generator[Any, None, None]:
    """The micro-batches of `indices` in their order, on `device`; `workers` = 0 makes each when it is asked for."""
    with closing(ordered(objective.batch, indices, workers)) as batches:
        for batch in batches:
            if isinstance(batch, VinoError):
                raise batch
            yield to_device(batch, device)


@contextmanager
def lost_workers(kept: Callable[[], str]) -> Iterator[None]:
    """Add to the report of dead workers what is `kept`."""
    try:
        yield
    except LostWorker as error:
        raise VinoError(f"{error}; {kept()}. Run the same command to go on") from error


def to_device(tree: Any, device: torch.device) -> Any:
    """Move the tensors in a tree of mappings, sequences, dataclasses and objects with a `to` to `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device, non_blocking=True)
    if hasattr(tree, "to"):
        return tree.to(device)
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
