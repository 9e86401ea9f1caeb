"""Where an objective's samples come from: the procedural world or files; both give the same `Sample`s."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vino_rt.errors import UsageError
from vino_rt.train.sample import Fault, Loaded

SOURCES = ("world", "files")


class Source(Protocol):
    """Batches of samples, each batch of one bucket and a pure function of its number."""

    def load(self, index: int) -> Loaded:
        """Batch `index`, in whichever process; nothing is counted."""

    def count(self, faults: Sequence[Fault]) -> None:
        """Remember what broke, in the process that trains; InputError when it is too much."""

    def held_out(self) -> "Source":
        """Samples to look at that are not trained on; the same ones where a source has no others."""

    def skipped(self) -> Mapping[str, int]:
        """How many examples were left out or replaced so far, by reason."""

    def describe(self) -> str:
        """A line or more for the log: what there is and what was skipped."""


def source_of(objective: object) -> Source | None:
    """Where an objective's samples come from; None for one that has no source."""
    source: Source | None = getattr(objective, "source", None)
    return source


def open_source(table: Mapping[str, Any], seed: int, base: Path) -> Source:
    """The source that a stage's table `[data]` names; paths in it are relative to `base`.

    Raises UsageError for an entry that cannot be used, InputError for a dataset without usable files.
    """
    name = table.get("source")
    if name == "world":
        from vino_rt.train.world_data import WorldData

        return WorldData(table, seed)
    if name == "files":
        from vino_rt.train.data.source import open_files

        return open_files(table, seed, base)
    raise UsageError(f"[data]: source is {name!r}; choose one of {', '.join(SOURCES)}")
