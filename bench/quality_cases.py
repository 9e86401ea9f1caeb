"""Which examples of the world stand in which row of the score table; it knows scenes, and no pixels and no model.

A row is a case on the split `test`, or on `unseen` under the name `CASE_unseen`. The first examples of a row are the
same however many are asked for, and long and short prompts take turns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle

from vino_rt.errors import UsageError
from vino_rt.world.examples import Example, make
from vino_rt.world.split import SPLITS

UNSEEN = "_unseen"
UNDERSTAND = "understand"
"""The case whose answers are captions; all others are answered in pixels."""


@dataclass(frozen=True)
class Case:
    """Examples of these tasks and kinds, in turn; of each only those that are wanted."""

    bar: float
    """Percent that must be right."""
    sources: tuple[tuple[str, str | None], ...]
    """Task and kind; without a kind all of the task, as often as the world draws them."""
    wanted: Callable[[Example], bool] = lambda _: True


def moves(example: Example) -> bool:
    """Whether anything in the target goes somewhere."""
    return any(thing.motion.direction is not None for thing in example.target.things)


CASES = {
    "t2i": Case(90, (("t2i", "single"),)),
    "t2i_two": Case(75, (("t2i", "pair"),)),
    "t2v": Case(85, (("t2v", "single"),), moves),
    "i2v": Case(80, (("i2v", None),), moves),
    "edit": Case(75, (("ti2i", None), ("tv2v", None))),
    "ti2v": Case(75, (("ti2v", "references"),), lambda example: len(example.images) == 2),
    UNDERSTAND: Case(90, (("t2i", "single"), ("t2v", "single"))),
}
ROWS = tuple(f"{name}{suffix}" for suffix in ("", UNSEEN) for name in CASES)


@dataclass(frozen=True)
class Trial:
    """One example of a row; its number is the seed that it is drawn with."""

    row: str
    number: int
    example: Example

    @property
    def case(self) -> str:
        """Name in CASES."""
        return self.row.removesuffix(UNSEEN)

    @property
    def kind(self) -> str:
        """What kind of example it is, for a breakdown of the row."""
        if self.case == UNDERSTAND:
            return "clip" if self.example.frames > 1 else "picture"
        return f"{self.example.task} {self.example.kind}"


def trials(row: str, number: int, *, size: tuple[int, int] = (64, 64), frames: int = 17) -> tuple[Trial, ...]:
    """The first so many examples of a row at a size (width, height) and, for clips, a number of frames.

    Raises UsageError for an unknown row, InputError for sizes and frames that the world does not draw.
    """
    if row not in ROWS:
        raise UsageError(f"no case {row!r}; there are {', '.join(ROWS)}")
    case, split = CASES[row.removesuffix(UNSEEN)], "unseen" if row.endswith(UNSEEN) else "test"
    assert split in SPLITS
    feeds = [_feed(*source, split, case.wanted, size, frames) for source in case.sources]
    return tuple(Trial(row, n, next(feeds[n % len(feeds)])) for n in range(number))


def _feed(
    task: str, kind: str | None, split: str, wanted: Callable[[Example], bool], size: tuple[int, int], frames: int
) -> Iterator[Example]:
    seeds = count()
    for length in cycle(("long", "short")):
        made = (make(task, seed, split=split, kind=kind, size=size, frames=frames, caption=length) for seed in seeds)
        yield next(example for example in made if wanted(example))
