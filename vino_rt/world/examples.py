"""Examples of every task from a seed: `make` is a pure function of its arguments.

It knows which kinds there are, how often each is drawn and which split an example may stand in; the makers know how.
"""

from collections.abc import Callable, Mapping

from vino_rt.errors import InputError
from vino_rt.world import animations, edits, references, stills
from vino_rt.world.captions import LENGTHS, caption
from vino_rt.world.dice import thrown
from vino_rt.world.example import Brief, Example
from vino_rt.world.layout import plain_to_see
from vino_rt.world.split import SPLITS, belongs

__all__ = ["KINDS", "PROXIES", "Example", "all_kinds", "caption", "kinds", "make"]

KINDS: Mapping[str, Mapping[str, float]] = {
    "t2i": {"single": 0.5, "pair": 0.35, "count": 0.15},
    "t2v": {"single": 0.65, "pair": 0.35},
    "i2v": {"motion": 1.0},
    "ti2v": {"references": 1.0},
    "ti2i": {
        "recolour": 0.2, "replace": 0.2, "add": 0.14, "remove": 0.12, "move": 0.12, "background": 0.08,
        "with_reference": 0.14,
    },
    "tv2v": {"recolour": 0.28, "replace": 0.28, "background": 0.12, "remove": 0.16, "add": 0.16},
    "tiv2v": {"with_reference": 0.5, "clone": 0.5},
}  # fmt: skip
"""How often each kind of a task is drawn when none is asked for."""
PROXIES = ("reconstruct", "select")
"""Kinds of ti2i for the first two stages of training (MODEL.md section 6), made only when asked for."""
_ON_REQUEST: Mapping[str, tuple[str, ...]] = {"t2i": ("close",), "ti2i": PROXIES}
STILL = ("t2i", "ti2i")
LEAST, LONGEST_SIDE, STRETCH = 16, 4096, 2.0
"""Shortest and longest side in pixels, and how many times as long as the other a side may be."""
MAX_FRAMES = 241
ATTEMPTS = 2000
"""Draws until one fits its split and its canvas; an unseen pair turns up in one of eight, rarely in one of sixty."""

_MAKERS: Mapping[tuple[str, str], Callable[[Brief], Example | None]] = {
    **stills.MAKERS,
    **edits.MAKERS,
    **references.MAKERS,
    **animations.MAKERS,
}


def kinds(task: str) -> tuple[str, ...]:
    """The kinds of a task that are drawn when none is asked for. Raises InputError for an unknown task."""
    if task not in KINDS:
        raise InputError(f"task is {task!r}; the world has {', '.join(KINDS)}")
    return tuple(KINDS[task])


def all_kinds(task: str) -> tuple[str, ...]:
    """The kinds of a task that can be asked for, `kinds` first. Raises InputError for an unknown task."""
    return (*kinds(task), *_ON_REQUEST.get(task, ()))


def make(
    task: str,
    seed: int,
    *,
    split: str,
    kind: str | None = None,
    size: tuple[int, int] = (64, 64),
    frames: int = 17,
    caption: str = "any",
) -> Example:
    """The example of a task that belongs to a seed; `size` is (width, height), `caption` "long", "short" or "any".

    Examples of "train" and "test" hold no pair of `split.HELD_OUT`; in "unseen" ones something the prompt is about is
    of such a pair. Tasks that make images leave `frames` aside. Raises InputError for what is not legal.
    """
    _check(task, split, kind, size, caption)
    if task in STILL:
        frames = 1
    elif frames < 5 or frames > MAX_FRAMES or frames % 4 != 1:
        raise InputError(f"frames is {frames}; a clip of the world has 5, 9, 13, ... {MAX_FRAMES} frames")
    dice = thrown(task, int(seed), split, kind, tuple(map(int, size)), int(frames), caption)
    chosen = kind if kind is not None else dice.weighted(KINDS[task])
    length = caption if caption in LENGTHS else dice.one(LENGTHS)
    brief = Brief(dice, task, chosen, size[0], size[1], frames, length)
    for _ in range(ATTEMPTS):
        example = _MAKERS[task, chosen](brief)
        if example is None or not all(map(plain_to_see, example.scenes)):
            continue
        if belongs(split, example.scenes, example.about):
            return example
    raise InputError(f"no {task} example of kind {chosen!r} fits {size[0]}x{size[1]} and {frames} frames: take others")


def _check(task: str, split: str, kind: str | None, size: tuple[int, int], caption: str) -> None:
    legal = all_kinds(task)
    if kind is not None and kind not in legal:
        raise InputError(f"kind is {kind!r}; task {task} has {', '.join(legal)}")
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; legal splits are {', '.join(SPLITS)}")
    if caption not in (*LENGTHS, "any"):
        raise InputError(f"caption is {caption!r}; legal are {', '.join((*LENGTHS, 'any'))}")
    if not LEAST <= min(size) <= max(size) <= min(LONGEST_SIDE, STRETCH * min(size)):
        raise InputError(
            f"size is {size[0]}x{size[1]}; sides are {LEAST} to {LONGEST_SIDE} pixels, the longer at most twice the "
            "shorter"
        )
