"""Which records make up batch i: buckets, token budget, task mixture and shuffling as a pure function of (seed, i).

Rules. Records of one task, one bucket and one number of references form a pool; a batch holds records of one pool, as
many as the token budget takes. A pool's records form one endless stream: its shuffled records, shuffled anew, and so
on; batches cut that stream without a gap, so what does not fill a batch at the end of one pass opens the first batch
of the next, and every record comes once in every pass. An epoch has, of each pool, the batches that its records (or
its task's weight) are worth; fractions add up over the epochs. It knows sizes of records, not their files.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
import numpy.typing as npt

from vino_rt.errors import InputError
from vino_rt.train.data.assemble import Record
from vino_rt.train.data.buckets import Bucket

_SHUFFLE, _SCHEDULE = 1, 2
_WEIGHT_STEPS = 10**6


@dataclass(frozen=True, eq=False)
class Pool:
    """Records that may share a batch."""

    task: str
    bucket: Bucket
    references: int
    """Image references of each record."""
    records: npt.NDArray[np.int64]
    """Indices into the index's records, ascending."""
    rows: int
    """Mean rows of the image stream of one record, rounded up."""
    size: int
    """Records in a batch."""
    share: Fraction
    """Batches in an epoch."""

    def __str__(self) -> str:
        references = f" +{self.references} references" if self.references else ""
        return (
            f"{self.task} {self.bucket}{references}: {len(self.records)} records, {self.size} in a batch of "
            f"{self.size * self.rows} rows, {float(self.share):.4g} batches in an epoch"
        )


class BatchOrder:
    """Endless sequence of batches; `order[i]` depends on the arguments and i alone, in any process and any order."""

    def __init__(
        self,
        records: Sequence[Record],
        tokens_per_batch: int,
        seed: int,
        mixture: Mapping[str, float] | None = None,
    ) -> None:
        """`tokens_per_batch`: rows of the image stream that a batch may have; a record above it is a batch alone.

        `mixture`: task to weight, its share of the batches, and so of the work, since batches cost about the same; 0
        leaves a task out. None takes every record equally often. Raises InputError for a budget below 1, a weight that
        is negative, and a mixture whose tasks are not those of the records.
        """
        if tokens_per_batch < 1 or seed < 0:
            raise InputError(f"tokens_per_batch {tokens_per_batch}, seed {seed}: legal are at least 1 and at least 0")
        self.seed = seed
        self.pools = _weigh(_pools(records, tokens_per_batch), mixture)
        self._total = sum((pool.share for pool in self.pools), Fraction(0))
        self._place = {int(r): (p, k) for p, pool in enumerate(self.pools) for k, r in enumerate(pool.records)}
        # Both remember the last answer only; what they hold follows from the arguments.
        self._passes: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        self._schedule: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __getitem__(self, index: int) -> tuple[int, ...]:
        """Indices of the records of batch `index`, 0 <= index, without end."""
        epoch = self.epoch(index)
        plan, place = self._epoch_plan(epoch), index - self.start(epoch)
        pool = int(plan[place])
        number = floor(epoch * self.pools[pool].share) + int(np.count_nonzero(plan[:place] == pool))
        return self._batch(pool, number)

    def start(self, epoch: int) -> int:
        """Index of the first batch of an epoch, 0 for the first one."""
        return sum(floor(epoch * pool.share) for pool in self.pools)

    def epoch(self, index: int) -> int:
        """The epoch that batch `index` belongs to."""
        assert index >= 0, f"batch {index}"
        epoch = floor(index / self._total)
        while self.start(epoch + 1) <= index:
            epoch += 1
        return epoch

    def next_record(self, record: int) -> int:
        """The record after this one in its pool, the first one after the last: what replaces a broken record."""
        pool, place = self._place[record]
        records = self.pools[pool].records
        return int(records[(place + 1) % len(records)])

    def _batch(self, pool: int, number: int) -> tuple[int, ...]:
        records, size = self.pools[pool].records, self.pools[pool].size
        places = range(number * size, (number + 1) * size)
        return tuple(int(records[self._pass(pool, p // len(records))[p % len(records)]]) for p in places)

    def _pass(self, pool: int, number: int) -> npt.NDArray[np.int64]:
        known = self._passes.get(pool)
        if known is None or known[0] != number:
            rng = np.random.default_rng((self.seed, _SHUFFLE, pool, number))
            known = self._passes[pool] = number, rng.permutation(len(self.pools[pool].records))
        return known[1]

    def _epoch_plan(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._schedule[0] != epoch:
            counts = [floor((epoch + 1) * pool.share) - floor(epoch * pool.share) for pool in self.pools]
            plan = np.repeat(np.arange(len(self.pools), dtype=np.int64), counts)
            rng = np.random.default_rng((self.seed, _SCHEDULE, epoch))
            self._schedule = epoch, rng.permutation(plan)
        return self._schedule[1]


def _pools(records: Sequence[Record], budget: int) -> list[Pool]:
    groups: dict[tuple[str, Bucket, int], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[record.task, record.bucket, len(record.images)].append(index)
    pools = []
    for (task, bucket, references), indices in sorted(groups.items()):
        rows = -(-sum(records[i].rows for i in indices) // len(indices))
        # A pool of fewer records than the budget takes makes smaller batches: none holds a record twice for it.
        size = max(1, min(len(indices), budget // rows))
        share = Fraction(len(indices), size)
        pools.append(Pool(task, bucket, references, np.array(indices, np.int64), rows, size, share))
    return pools


def _weigh(pools: list[Pool], mixture: Mapping[str, float] | None) -> tuple[Pool, ...]:
    if mixture is None:
        return tuple(pools)
    tasks = sorted({pool.task for pool in pools})
    if any(not 0 <= weight < float("inf") for weight in mixture.values()) or not any(mixture.values()):
        raise InputError(f"mixture {dict(mixture)}: weights are numbers from 0, one of them above 0")
    absent = sorted(task for task, weight in mixture.items() if weight > 0 and task not in tasks)
    unnamed = sorted(set(tasks) - set(mixture))
    if absent or unnamed:
        raise InputError(
            f"mixture {dict(mixture)}: no records of {absent or 'none'}, no weight for {unnamed or 'none'}; the data "
            f"has {', '.join(tasks)}: weigh each of them, 0 leaves one out"
        )
    weights = {task: Fraction(weight).limit_denominator(_WEIGHT_STEPS) for task, weight in mixture.items()}
    epoch = sum((pool.share for pool in pools), Fraction(0))
    own = {task: sum((pool.share for pool in pools if pool.task == task), Fraction(0)) for task in tasks}
    scale = {task: epoch * weights[task] / sum(weights.values()) / own[task] for task in tasks}
    return tuple(
        Pool(p.task, p.bucket, p.references, p.records, p.rows, p.size, p.share * scale[p.task]) for p in pools
    )
