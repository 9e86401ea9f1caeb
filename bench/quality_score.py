"""From answers to numbers: each answer judged, and the shares that are right with their intervals and parts.

It knows examples and the judge, not who answers: an engine, a model in training, or nobody but the truth itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.harness import Interval, Mark, Measure, summary
from bench.quality_cases import CASES, Trial
from vino_rt.request import Pixels
from vino_rt.world.examples import Example
from vino_rt.world.judge import judge, understands
from vino_rt.world.judge.verdict import Reconstruct

Answer = Pixels | str
"""Frames uint8 [F, H, W, 3], or a caption where the case is `understand`."""
Z95 = 1.959964
"""Standard normal deviate that leaves 2.5 % on either side."""


@dataclass(frozen=True)
class Judged:
    """What became of one trial."""

    row: str
    number: int
    kind: str
    prompt: str
    wanted: str
    """What would have been right, for people."""
    right: bool
    parts: Mapping[str, bool]
    seen: str
    seconds: float | None = None
    """How long the answer took."""
    floor_db: float | None = None
    """PSNR of the autoencoder's reconstruction of the truth, where it was taken."""


def judged(
    trial: Trial,
    answer: Answer,
    floor: Reconstruct | None,
    *,
    seconds: float | None = None,
    floor_db: float | None = None,
) -> Judged:
    """Judge one answer; frames must have the example's size and number."""
    example = trial.example
    if isinstance(answer, str):
        verdict = understands(answer, example.target)
        seen = f"{answer!r}: {verdict.seen}"
    else:
        verdict = judge(example, answer, floor=floor)
        seen = verdict.seen
    about = (trial.row, trial.number, trial.kind, example.prompt, wanted(example))
    return Judged(*about, verdict.right, dict(verdict.parts), seen, seconds, floor_db)


def wanted(example: Example) -> str:
    """The target in the judge's words."""
    told = []
    for thing in example.target.things:
        motion = thing.motion
        does = [f"goes {motion.direction} {motion.speed}"] if motion.direction else []
        does += ["spins"] * motion.spins + ([motion.growth] if motion.growth else [])
        told.append(f"{thing.colour} {thing.shape} at ({thing.x:.2f}, {thing.y:.2f}) {' and '.join(does) or 'rests'}")
    return f"{', '.join(told) or 'nothing'} on {example.target.background}"


def measures(found: Iterable[Judged]) -> list[Measure]:
    """Every row: the share that is right against its bar, then by kind and by part, the floor, and the time taken."""
    by_row: dict[str, list[Judged]] = {}
    for each in found:
        by_row.setdefault(each.row, []).append(each)
    return [measure for row, tried in by_row.items() for measure in _row(row, tried)]


def _row(row: str, tried: Sequence[Judged]) -> list[Measure]:
    bar = Mark(CASES[row].bar, "%", "required: at least") if row in CASES else None
    rows = [share(row, "right", [each.right for each in tried], bar)]
    by_kind: dict[str, list[Judged]] = {}
    for each in tried:
        by_kind.setdefault(each.kind, []).append(each)
    for kind, some in sorted(by_kind.items()):
        if len(by_kind) > 1:
            rows.append(share(f"{row}: {kind}", "right", [each.right for each in some]))
        floors = [each.floor_db for each in some if each.floor_db is not None]
        if floors:
            rows.append(Measure(f"{row}: {kind}", "autoencoder on the truth, mean", sum(floors) / len(floors), "dB"))
    for part in sorted({name for each in tried for name in each.parts}):
        rows.append(share(f"{row}: parts", part, [each.parts[part] for each in tried if part in each.parts]))
    seconds = [each.seconds for each in tried if each.seconds is not None]
    return [*rows, *([summary(seconds, f"{row}: time", "an answer", "s")] if seconds else [])]


def share(case: str, metric: str, rights: Sequence[bool], bar: Mark | None = None) -> Measure:
    """Percent that is right, with its interval."""
    low, high = wilson(sum(rights), len(rights))
    return Measure(
        case, metric, 100 * sum(rights) / len(rights), "%", Interval(len(rights), 100 * low, 100 * high), bar
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share, both ends in 0..1 (Wilson 1927); asymmetric, and never outside."""
    assert 0 <= right <= count, f"{right} of {count}"
    p, z2 = right / count, Z95**2 / count
    centre, half = p + z2 / 2, math.sqrt(z2 * (p * (1 - p) + z2 / 4))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def failures(rows: Iterable[Measure]) -> list[str]:
    """Which rows miss their bar, and by how much."""
    return [
        f"{row.case}: {row.value:.1f} %, {row.ceiling.value - row.value:.1f} below {row.ceiling.value:g} %"
        for row in rows
        if row.ceiling is not None and row.metric == "right" and row.value < row.ceiling.value
    ]
