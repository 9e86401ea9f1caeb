"""Examples of t2i and t2v: a scene, and its description as the prompt.

It knows how scenes are composed; the words come from `captions`.
"""

from collections.abc import Callable
from dataclasses import replace

from vino_rt.world.captions import caption
from vino_rt.world.example import Brief, Example
from vino_rt.world.layout import any_motion, any_thing, arrange, relation
from vino_rt.world.scene import BACKGROUNDS, Motion, Scene, Thing

ASKED = 0.3
"""How often a prompt says that a picture or a video is wanted."""
COUNTS = {2: 0.34, 3: 0.33, 4: 0.33}
COUNT_APART = 0.1
"""Least distance between things that are to be counted."""


def single(brief: Brief) -> Example | None:
    """One thing, at rest or doing something."""
    dice = brief.dice
    thing = any_thing(dice)
    if brief.frames > 1:
        thing = replace(thing, motion=any_motion(dice, thing.shape))
    return _described(brief, arrange(dice, (thing,), brief.canvas))


def close(brief: Brief) -> Example | None:
    """One thing from so close by that its shape, of all it shows, fills most of the picture."""
    return _described(brief, arrange(brief.dice, (any_thing(brief.dice, sizes=("huge",)),), brief.canvas))


def pair(brief: Brief) -> Example | None:
    """Two things of different colour and shape, one clearly beside or above the other if both rest."""
    dice = brief.dice
    first = any_thing(dice)
    things = [first, any_thing(dice, (first,))]
    if brief.frames > 1:
        things = [replace(thing, motion=any_motion(dice, thing.shape)) for thing in things]
        if dice.chance(0.5):
            still = dice.one((0, 1))
            things[still] = replace(things[still], motion=Motion())
    placed = arrange(dice, things, brief.canvas)
    if placed is not None and brief.frames == 1 and relation(placed[0], placed[1], brief.canvas.aspect) is None:
        return None
    return _described(brief, placed)


def count(brief: Brief) -> Example | None:
    """Two, three or four equal things, well apart."""
    dice = brief.dice
    number = dice.weighted(COUNTS)
    thing = any_thing(dice, sizes=("small",) if number == 2 else ("tiny",))
    return _described(brief, arrange(dice, (thing,) * number, brief.canvas, apart=COUNT_APART))


def _described(brief: Brief, things: tuple[Thing, ...] | None) -> Example | None:
    """An example whose prompt is a caption of its target."""
    if things is None:
        return None
    dice = brief.dice
    scene = Scene(dice.one(tuple(BACKGROUNDS)), things)
    prompt = caption(scene, dice.rng, brief.length, aspect=brief.canvas.aspect)
    if not brief.long and dice.chance(ASKED):
        prompt = f"{dice.one(_asking(scene, brief.frames))} {prompt}"
    return brief.example(prompt, scene, focus=tuple(range(len(things))))


def _asking(scene: Scene, frames: int) -> tuple[str, ...]:
    """Openings that turn a description into a wish; what moves is described by sentences, what rests by nouns."""
    if frames == 1:
        return ("a picture of", "draw", "make a picture of")
    return ("a video of", "make a video of") if scene.rests else ("a video where", "make a video where")


MAKERS: dict[tuple[str, str], Callable[[Brief], Example | None]] = {
    ("t2i", "single"): single,
    ("t2i", "close"): close,
    ("t2i", "pair"): pair,
    ("t2i", "count"): count,
    ("t2v", "single"): single,
    ("t2v", "pair"): pair,
}
