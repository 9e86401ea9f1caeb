"""The table `[data]` of a stage that trains on files, read into a `DiskData`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vino_rt.errors import UsageError
from vino_rt.train.data.buckets import UNIT, Bucket, Sizing, make_buckets
from vino_rt.train.data.disk import DiskConfig, DiskData
from vino_rt.train.settings import take_table

WHERE = "[data]"


@dataclass(frozen=True)
class FilesTable:
    """Entries of the table; see `vino_rt.train.data` for what may lie in the paths."""

    paths: tuple[str, ...]
    """Folders and .tar files, relative to the stage's file."""
    area: int
    """Pixels of a sample and of a reference."""
    frames: tuple[int, ...] = (1,)
    """Lengths of targets: 1 for pictures, 4k + 1 for clips."""
    budget: int = 16000
    """Tokens of the image stream in a batch."""
    unit: int = UNIT
    max_aspect: float = 2.0
    max_enlarge: float = 1.0
    tasks: Mapping[str, float] | None = None
    """Task to its share of the batches; every record equally often when left out."""
    long: float = 0.5
    """Share of long captions."""
    max_broken: float = 0.1
    """Share of the records that may turn out broken."""
    source: str = "files"


def open_files(table: Mapping[str, Any], seed: int, base: Path) -> DiskData:
    """Scan the files that a table names; UsageError for an entry, InputError for data that cannot be used."""
    given = take_table(table, FilesTable, WHERE)
    if not given.paths:
        raise UsageError(f"{WHERE}: paths is {list(given.paths)!r}; name folders and .tar files")
    if given.unit < UNIT or given.unit % UNIT:
        raise UsageError(f"{WHERE}: unit is {given.unit}, expected a multiple of {UNIT}, the pixels of a latent patch")
    buckets: tuple[Bucket, ...] = make_buckets(given.area, given.unit, frames=given.frames, max_aspect=given.max_aspect)
    sizing = Sizing(buckets=buckets, area=given.area, unit=given.unit, max_enlarge=given.max_enlarge)
    return DiskData(
        DiskConfig(
            paths=tuple(base / path for path in given.paths),
            sizing=sizing,
            tokens_per_batch=given.budget,
            seed=seed,
            mixture=given.tasks,
            long_share=given.long,
            max_broken=given.max_broken,
        )
    )
