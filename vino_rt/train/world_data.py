"""Training samples from the procedural world: which ones a batch holds is arithmetic, drawing them needs no files.

A batch is a pure function of the table, the seed and the batch's number. It knows no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vino_rt.errors import UsageError
from vino_rt.models.vino.prepare import vlm_frames
from vino_rt.task_rules import TASKS
from vino_rt.train.data.buckets import UNIT
from vino_rt.train.sample import Fault, Loaded, Sample
from vino_rt.train.settings import positive, take_table
from vino_rt.world import examples
from vino_rt.world.example import Example
from vino_rt.world.split import SPLITS

WHERE = "[data]"
PICTURES = {"ti2i": 1, "i2v": 1, "ti2v": 2, "tiv2v": 1}
"""Reference images that a task mostly has; the proxy tasks have two or three."""
SHOWN = 1.5
"""Rows that a token of a reference costs: its latent, and what the vision-language model makes of its pixels."""


@dataclass(frozen=True)
class WorldTable:
    """The table `[data]` of a stage that trains on the world."""

    tasks: Mapping[str, float]
    """Weight of each task, or of one kind of it as `task/kind`."""
    buckets: tuple[Mapping[str, Any], ...]
    """Each with `size` (width, height), `frames` and `share` of the batches; some with `examples` of their own."""
    budget: int = 4000
    """Rows of a batch's packed sequence: as many samples as fit, so that all steps cost about the same."""
    overhead: int = 25
    """Rows that a sample's prompt takes; those of its target and, about, of its references are counted."""
    examples: int = 20000
    """Different examples of each task in each bucket; smaller makes encoded ones reusable."""
    long: float = 0.5
    """Share of long captions: the caption curriculum (paper, stages 1 and 2)."""
    source: str = "world"
    split: str = "train"


@dataclass(frozen=True)
class WorldBucket:
    """Samples of one batch have these pixels and frames, and tasks that suit them."""

    width: int
    height: int
    frames: int
    share: float
    examples: int
    tasks: tuple[tuple[str, str | None], ...]
    weights: tuple[float, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """About how many rows the target and the references of a sample of each task take."""
        still = (self.width // UNIT) * (self.height // UNIT)
        clip = ((self.frames - 1) // 4 + 1) * still
        return tuple(clip + round(SHOWN * _references(task, kind, still, clip)) for task, kind in self.tasks)


@dataclass(frozen=True)
class WorldKey:
    """Names one sample; equal keys are equal samples."""

    task: str
    kind: str | None
    seed: int
    size: tuple[int, int]
    frames: int
    caption: str
    split: str

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}x{self.frames}"
        return f"{self.split}/{self.task}/{self.kind or 'any'}/{size}/{self.caption}/{self.seed}"


class WorldData:
    """Batches of the world; `keys` says what a batch holds, `draw` makes one sample."""

    def __init__(self, table: Mapping[str, Any], seed: int) -> None:
        """Raises UsageError naming the entry of the table that cannot be used."""
        self.table = take_table(table, WorldTable, WHERE)
        self.seed = seed
        if self.table.split not in SPLITS:
            raise UsageError(f"{WHERE}: split is {self.table.split!r}; choose one of {', '.join(SPLITS)}")
        for name in ("budget", "examples"):
            positive(getattr(self.table, name), name, WHERE)
        whole = {"examples": self.table.examples}
        self.buckets = tuple(_bucket({**whole, **entry}, self.table.tasks) for entry in self.table.buckets)
        if not 0 <= self.table.long <= 1:
            raise UsageError(f"{WHERE}: long is {self.table.long}, expected a share from 0 to 1")
        shares = np.array([bucket.share for bucket in self.buckets])
        if not len(shares) or not shares.sum() > 0:
            raise UsageError(f"{WHERE}: buckets is {self.table.buckets!r}; name at least one with a share above 0")
        self._shares = shares / shares.sum()

    def keys(self, index: int) -> tuple[WorldKey, ...]:
        """What batch `index` holds: samples of one bucket, as many as the budget allows."""
        chooser = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, index])))
        bucket = self.buckets[int(chooser.choice(len(self.buckets), p=self._shares))]
        rows = np.array(bucket.rows) + self.table.overhead
        chosen = chooser.choice(len(bucket.tasks), size=max(1, self.table.budget // rows.min()), p=bucket.weights)
        count = max(1, int((rows[chosen].cumsum() <= self.table.budget).sum()))
        chosen = chosen[:count]
        seeds = chooser.integers(bucket.examples, size=count)
        long = chooser.random(count) < self.table.long
        size = bucket.width, bucket.height
        return tuple(
            WorldKey(
                task=bucket.tasks[task][0],
                kind=bucket.tasks[task][1],
                seed=int(seed),
                size=size,
                frames=bucket.frames,
                caption="long" if wordy else "short",
                split=self.table.split,
            )
            for task, seed, wordy in zip(chosen, seeds, long, strict=True)
        )

    def draw(self, key: WorldKey) -> Sample:
        """Draw one sample."""
        example = examples.make(
            key.task, key.seed, split=key.split, kind=key.kind, size=key.size, frames=key.frames, caption=key.caption
        )
        return sample_of(example, str(key))

    def load(self, index: int) -> Loaded:
        """The samples of batch `index`."""
        return Loaded(tuple(self.draw(key) for key in self.keys(index)))

    def count(self, faults: Sequence[Fault]) -> None:
        """Nothing: what is drawn is never broken."""

    def held_out(self) -> "WorldData":
        """This mixture on the split `test`."""
        return WorldData({**asdict(self.table), "split": "test"}, self.seed)

    def skipped(self) -> Mapping[str, int]:
        """Nothing, as above."""
        return {}

    def describe(self) -> str:
        """One line for the log."""
        names = ", ".join(f"{b.width}x{b.height}x{b.frames} ({b.examples} of each task)" for b in self.buckets)
        return f"world, split {self.table.split}; buckets {names}"


def sample_of(example: Example, key: str) -> Sample:
    """An example of the world as a training sample."""
    clip = example.clip()
    return Sample(
        key=key,
        task=example.task,
        caption=example.prompt,
        images=tuple(example.picture(i) for i in range(len(example.images))),
        video=clip,
        vlm_frames=None if clip is None else vlm_frames(clip),
        target=example.truth(),
    )


def legal_kinds(task: str) -> tuple[str, ...]:
    """The kinds that a task may be asked for as `task/kind`, the proxy tasks among them; none for an unknown task."""
    return examples.all_kinds(task) if task in examples.KINDS else ()


def _references(task: str, kind: str | None, still: int, clip: int) -> int:
    """Tokens of the references of a sample, when a picture has `still` and the clip `clip`."""
    pictures = 2 if kind in examples.PROXIES else PICTURES.get(task, 0)
    return pictures * still + (clip if TASKS[task].video else 0)


def _task(name: str) -> tuple[str, str | None]:
    task, slash, kind = name.partition("/")
    if task not in examples.KINDS:
        raise UsageError(f"{WHERE}: task {name!r} is unknown; tasks are {', '.join(examples.KINDS)}, or one with /kind")
    if slash and kind not in legal_kinds(task):
        raise UsageError(f"{WHERE}: task {name!r} is unknown; {task} has the kinds {', '.join(legal_kinds(task))}")
    return task, kind or None


def _check_bucket(entry: Mapping[str, Any]) -> None:
    if set(entry) != {"size", "frames", "share", "examples"}:
        raise UsageError(f"{WHERE}: bucket {dict(entry)!r}; needs size, frames and share, may have examples, no more")
    size, frames, share = entry["size"], entry["frames"], entry["share"]
    legal = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
    if not legal or any(side % UNIT or side < UNIT for side in size):
        raise UsageError(f"{WHERE}: bucket {dict(entry)!r}: size is {size!r}, expected two multiples of {UNIT}")
    if type(frames) is not int or frames < 1 or frames % 4 != 1:
        raise UsageError(f"{WHERE}: bucket {dict(entry)!r}: frames is {frames!r}, expected 1, 5, 9, ...")
    if type(entry["examples"]) is not int or entry["examples"] < 1:
        raise UsageError(f"{WHERE}: bucket {dict(entry)!r}: examples is {entry['examples']!r}, expected 1, 2, 3, ...")
    if type(share) not in (int, float) or not 0 <= share < math.inf:
        raise UsageError(f"{WHERE}: bucket {dict(entry)!r}: share is {share!r}, expected a number of at least 0")


def _bucket(entry: Mapping[str, Any], tasks: Mapping[str, float]) -> WorldBucket:
    _check_bucket(entry)
    suited = []
    for name, weight in tasks.items():
        task, kind = _task(name)
        if not weight >= 0:
            raise UsageError(f"{WHERE}: the weight of task {name!r} is {weight}, expected a number of at least 0")
        if TASKS[task].still == (entry["frames"] == 1) and weight > 0:
            suited.append((task, kind, weight))
    if not suited:
        raise UsageError(f"{WHERE}: no task makes {entry['frames']} frames; tasks is {dict(tasks)!r}")
    total = sum(weight for *_, weight in suited)
    return WorldBucket(
        width=entry["size"][0],
        height=entry["size"][1],
        frames=entry["frames"],
        share=float(entry["share"]),
        examples=entry["examples"],
        tasks=tuple((task, kind) for task, kind, _ in suited),
        weights=tuple(weight / total for *_, weight in suited),
    )
