"""Words for things, places and motions.

It knows the world's own names and their few synonyms; sentences are made in `captions`, edits in `edits`. Everything
is lower case, so that a small text encoder meets each word in one spelling.
"""

from collections.abc import Sequence

from vino_rt.world.dice import Dice
from vino_rt.world.scene import Motion, Thing

SYNONYMS = {"circle": "disc", "ring": "donut"}
"""A second word for a shape, used now and then."""
SECOND = 0.12
"""How often the second word stands for the first."""
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLACE_PHRASES = {
    "top left": ("at the top left", "in the top left corner"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the top right corner"),
    "left": ("on the left", "at the left"),
    "center": ("in the center", "in the middle"),
    "right": ("on the right", "at the right"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
GOAL_PHRASES = {
    "top left": ("to the top left", "into the top left corner"),
    "top": ("to the top",),
    "top right": ("to the top right", "into the top right corner"),
    "left": ("to the left side",),
    "center": ("to the center", "into the middle"),
    "right": ("to the right side",),
    "bottom left": ("to the bottom left", "into the bottom left corner"),
    "bottom": ("to the bottom",),
    "bottom right": ("to the bottom right", "into the bottom right corner"),
}
RELATION_PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
WAYS = {
    "left": ("to the left", "left"),
    "right": ("to the right", "right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
SPEED_WORDS = {"slowly": ("slowly",), "quickly": ("quickly", "fast")}
MOVES = ("moves", "moves", "slides", "goes")
SPINS = ("spins", "spins", "rotates")
GROWS = {"grows": ("grows", "gets bigger"), "shrinks": ("shrinks", "gets smaller")}
RESTS = ("stays still", "does not move", "stays in place")


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def shape_word(dice: Dice, shape: str) -> str:
    """A shape's name or, now and then, its synonym."""
    return SYNONYMS[shape] if shape in SYNONYMS and dice.chance(SECOND) else shape


def noun(dice: Dice, thing: Thing, *, size: bool = False, texture: bool = True) -> str:
    """A thing's name without an article: size if asked for, texture if asked for and not plain, colour, shape."""
    words = [dice.one(SIZE_WORDS[thing.size])] if size and thing.size in SIZE_WORDS else []
    if texture and thing.texture != "plain":
        words.append(thing.texture)
    return " ".join([*words, thing.colour, shape_word(dice, thing.shape)])


def refer(dice: Dice, thing: Thing, *, long: bool) -> str:
    """A thing that is already there and the only one of its colour and of its shape, as in "the red circle"."""
    if long:
        return f"the {noun(dice, thing, size=True)}"
    kind = dice.weighted(_REFERRED)
    if kind == "both":
        return f"the {noun(dice, thing, texture=False)}"
    return f"the {shape_word(dice, thing.shape)}" if kind == "shape" else f"the {thing.colour} thing"


_REFERRED = {"both": 0.65, "shape": 0.22, "colour": 0.13}


def lent(dice: Dice, thing: Thing, number: int) -> str:
    """A thing that a reference image shows, as in "the thing in image 1"; half of the time the image must tell all."""
    name = dice.weighted({"thing": 0.5, thing.shape: 0.2, f"{thing.colour} {thing.shape}": 0.3})
    return f"the {name} {dice.one(('in', 'from'))} image {number}"


def plural(name: str) -> str:
    """A noun for several things."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def place(dice: Dice, name: str) -> str:
    """Where a thing is, as in "at the top left"."""
    return dice.one(PLACE_PHRASES[name])


def does(dice: Dice, motion: Motion, *, speed: bool) -> str:
    """What a thing does, as in "moves to the left slowly and spins"; the speed only if asked for."""
    parts = []
    if motion.direction is not None:
        fast = f" {dice.one(SPEED_WORDS[motion.speed])}" if speed else ""
        parts.append(f"{dice.one(MOVES)} {dice.one(WAYS[motion.direction])}{fast}")
    if motion.spins:
        parts.append(dice.one(SPINS))
    if motion.growth is not None:
        parts.append(dice.one(GROWS[motion.growth]))
    return " and ".join(parts) or dice.one(RESTS)


def listed(parts: Sequence[str]) -> str:
    """Words joined as in "a, b and c"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
