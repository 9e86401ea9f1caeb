"""Sentences that describe a scene, still or moving, long or short, in several wordings.

It knows what a scene shows and how words are put together; it does not know tasks. A long caption says everything:
background, size, texture, colour, shape, place where it is clear, motion. A short one says colour, shape and motion.
"""

import numpy as np

from vino_rt.world import words
from vino_rt.world.dice import Dice
from vino_rt.world.layout import place_of, relation
from vino_rt.world.scene import Scene, Thing

EXTRA = 0.25
"""How often a short caption names a place or the background all the same."""
LENGTHS = ("long", "short")


def caption(scene: Scene, rng: np.random.Generator, length: str, *, aspect: float = 1.0) -> str:
    """A description of a scene, `length` being "long" or "short"; `aspect` is the canvas's width / height.

    Colour, shape and texture of every thing are named, and what each thing does where anything moves.
    """
    assert length in LENGTHS, f"unknown length {length}"
    dice, long = Dice(rng), length == "long"
    background = f"{scene.background} background" if long or dice.chance(EXTRA) else ""
    if not scene.things:
        return _ended(f"an empty {scene.background} background", long)
    if scene.rests:
        return _ended(_still(dice, scene, _content(dice, scene, long, aspect), background), long)
    clauses = [f"{_subject(dice, thing, long)} {words.does(dice, thing.motion, speed=long)}" for thing in scene.things]
    text = _joined(dice, clauses)
    if not background:
        return _ended(text, long)
    return _ended(dice.one((f"{text} on a {background}", f"on a {background}, {text}")), long)


def _ended(text: str, long: bool) -> str:
    return f"{text}." if long else text


def _still(dice: Dice, scene: Scene, content: str, background: str) -> str:
    """A noun phrase about something that rests, or a sentence if its background is told."""
    if not background:
        return content
    forms = [f"{content} on a {background}", f"a {background} with {content}"]
    if len(scene.things) == 1 or _alike(scene):
        several = len(scene.things) > 1
        forms.append(f"on a {background} there {'are' if several else 'is'} {content}")
    return dice.one(forms)


def _content(dice: Dice, scene: Scene, long: bool, aspect: float) -> str:
    """The things of a still scene as one noun phrase."""
    things = scene.things
    first = things[0]
    if len(things) in words.NUMBERS and _alike(scene):
        size = long and len({thing.size for thing in things}) == 1
        return f"{words.NUMBERS[len(things)]} {words.plural(words.noun(dice, first, size=size))}"
    side = relation(first, things[1], aspect) if len(things) == 2 else None
    if side is None:
        return words.listed([_subject(dice, thing, long) for thing in things])
    one, other = things
    if dice.chance(0.5):
        one, other, side = other, one, words.OPPOSITE[side]
    between = dice.one(words.RELATION_PHRASES[side])
    return " ".join((_subject(dice, one, long, at=False), between, _subject(dice, other, long, at=False)))


def _alike(scene: Scene) -> bool:
    return len({(thing.colour, thing.shape, thing.texture) for thing in scene.things}) == 1


def _subject(dice: Dice, thing: Thing, long: bool, *, at: bool = True) -> str:
    """A thing with its article and, if wanted and clear, the place where it is at first."""
    name = words.with_article(words.noun(dice, thing, size=long))
    spot = place_of(thing.x, thing.y)
    if not at or spot is None or not (long or dice.chance(EXTRA)):
        return name
    return f"{name} {words.place(dice, spot)}"


def _joined(dice: Dice, clauses: list[str]) -> str:
    return f" {dice.one(('and', 'while'))} ".join(clauses)
