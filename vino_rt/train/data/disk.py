"""Batches of samples from disk: the order of `BatchOrder`, decoded, with broken files replaced and counted.

What batch i holds depends on the configuration, the files and i alone, in whichever process it is made. It knows no
tensors and no objective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vino_rt.errors import InputError
from vino_rt.train.data.buckets import Sizing
from vino_rt.train.data.decode import load_sample
from vino_rt.train.data.index import EXAMPLES, Index, open_dataset
from vino_rt.train.data.order import BatchOrder
from vino_rt.train.sample import Fault, Loaded, Sample

_CAPTIONS = 3
BROKEN = "broken while decoding"


@dataclass(frozen=True, kw_only=True)
class DiskConfig:
    """A data set on disk and how it is drawn from. Raises InputError for shares outside 0 to 1."""

    paths: tuple[Path, ...]
    sizing: Sizing
    tokens_per_batch: int
    """Rows of the image stream, references and boundaries included, text not."""
    seed: int
    mixture: Mapping[str, float] | None = None
    """Task to its share of the batches; None takes every record equally often."""
    long_share: float = 0.5
    """Share of long captions; the curriculum's stages differ by it."""
    max_broken: float = 0.1
    """Share of the records that may turn out broken before training stops."""
    max_bytes: int = 2**30
    """Largest size of one media file."""

    def __post_init__(self) -> None:
        for name in ("long_share", "max_broken"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; legal is 0 to 1")


class DiskData:
    """Random access to the batches of a data set. Raises InputError as `open_dataset` and `BatchOrder` do.

    Whichever process loads a batch hands its faults to the one that trains, which counts them.
    """

    def __init__(self, config: DiskConfig, index: Index | None = None) -> None:
        """`index` saves the scan where it is there already."""
        self.config = config
        self.index = index or open_dataset(config.paths, config.sizing, max_bytes=config.max_bytes)
        self.order = BatchOrder(self.index.records, config.tokens_per_batch, config.seed, config.mixture)
        self.faults: dict[str, str] = {}
        """Key of each record found broken so far, with the reason."""

    def load(self, index: int) -> Loaded:
        """Batch `index`; nothing is counted. Raises InputError when no record of its pool can be decoded."""
        faults: list[Fault] = []
        samples = []
        for slot, record in enumerate(self.order[index]):
            rng = np.random.default_rng((self.config.seed, _CAPTIONS, index, slot))
            samples.append(self._sample(record, rng, faults))
        return Loaded(tuple(samples), tuple(faults))

    def count(self, faults: Sequence[Fault]) -> None:
        """Count faults; InputError when more than `max_broken` of the records are broken."""
        self.faults.update((fault.key, fault.message) for fault in faults)
        limit = self.config.max_broken * len(self.index.records)
        if len(self.faults) > limit:
            first = "; ".join(list(self.faults.values())[:EXAMPLES])
            raise InputError(
                f"{len(self.faults)} of {len(self.index.records)} records cannot be decoded, max_broken "
                f"{self.config.max_broken:g} allows {int(limit)}; first: {first}. Repair the data, or "
                "begin a run that allows more"
            )

    def held_out(self) -> "DiskData":
        """This data set: a folder has no split of its own."""
        return self

    def skipped(self) -> dict[str, int]:
        """How many records the scan left out, by reason, and how many broke since."""
        return {**self.index.report.skipped, **({BROKEN: len(self.faults)} if self.faults else {})}

    def describe(self) -> str:
        """Several lines for a log: records and batches of each pool, what the scan left out, what broke since."""
        report = self.index.report
        lines = [f"{report.kept} records; {float(sum(p.share for p in self.order.pools)):.6g} batches in an epoch"]
        lines += [f"  {pool}" for pool in self.order.pools]
        lines += [f"  {line}" for line in report.lines()]
        if self.faults:
            lines.append(f"  {BROKEN}: {len(self.faults)}; first: {next(iter(self.faults.values()))}")
        return "\n".join(lines)

    def _sample(self, record: int, rng: np.random.Generator, faults: list[Fault]) -> Sample:
        tried = record
        while True:
            entry = self.index.records[tried]
            try:
                return load_sample(entry, rng, self.config.sizing, self.config.long_share)
            except InputError as error:
                faults.append(Fault(entry.key, str(error)))
            tried = self.order.next_record(tried)
            if tried == record:
                raise InputError(
                    f"not one record like {entry.key} ({entry.task}, {entry.bucket}) can be decoded; the last: "
                    f"{faults[-1].message}. Repair the data"
                )
