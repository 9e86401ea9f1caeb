"""Whether a caption says what a scene shows: colour, shape and motion of every thing, in any of the usual words.

It reads words, not grammar: what stands behind a thing's name up to the next name belongs to that thing. It knows no
pixels.
"""

import re
from collections import Counter
from dataclasses import dataclass

from vino_rt.world.judge.verdict import Verdict
from vino_rt.world.scene import COLOURS, SHAPES, Scene
from vino_rt.world.words import NUMBERS, SYNONYMS, plural

OTHER_WORDS = {"disk": "circle", "doughnut": "ring"}
"""Spellings that the world itself does not use."""
WAY = re.compile(
    r"\b(?:mov|slid|go|travel|drift|head)\w*(?: \w+ly| fast)?(?: to the| towards the)? "
    r"(left|right|up|down)(?:wards?)?\b"
)
SPIN = re.compile(r"\b(?:spin|rotat|turn)\w*\b")
GROWTH = {
    "grows": re.compile(r"\bgrow\w*\b|\b(?:gets|getting|becomes) (?:bigger|larger)\b"),
    "shrinks": re.compile(r"\bshr[iu]nk\w*\b|\b(?:gets|getting|becomes) smaller\b"),
}
_SHAPE_OF = {shape: shape for shape in SHAPES} | {word: shape for shape, word in SYNONYMS.items()} | OTHER_WORDS
_SHAPE_OF |= {plural(word): shape for word, shape in _SHAPE_OF.items()}
_NUMBER_OF = {word: number for number, word in NUMBERS.items()}
_NAME = re.compile(rf"(?:\b({'|'.join(COLOURS)}) )?\b({'|'.join(_SHAPE_OF)})\b")


@dataclass(frozen=True)
class Named:
    """One thing as a caption names it."""

    shape: str
    colour: str | None
    direction: str | None
    spins: bool
    growth: str | None


def read(caption: str) -> tuple[Named, ...]:
    """The things a caption names, in its order; "two red circles" are two."""
    text = " ".join(re.findall(r"[a-z]+", caption.lower()))
    names = list(_NAME.finditer(text))
    found: list[Named] = []
    for index, name in enumerate(names):
        before = text[names[index - 1].end() if index else 0 : name.start()]
        after = text[name.end() : names[index + 1].start() if index + 1 < len(names) else len(text)]
        way = WAY.search(after)
        growth = [kind for kind, words in GROWTH.items() if words.search(after)]
        thing = Named(
            _SHAPE_OF[name[2]],
            name[1],
            way[1] if way else None,
            bool(SPIN.search(after)),
            growth[0] if growth else None,
        )
        plural_of = [_NUMBER_OF[word] for word in before.split() if word in _NUMBER_OF] if name[2].endswith("s") else []
        found.extend([thing] * (plural_of[-1] if plural_of else 1))
    return tuple(found)


def understands(caption: str, scene: Scene) -> Verdict:
    """Judge a caption: right when it names exactly the scene's things with colour and shape, and what each does.

    Parts: `colour`, `shape`, `number`, `together` (each colour with its shape), `motion`, and `background` if it names
    one.
    """
    named = read(caption)
    wanted = [
        Named(thing.shape, thing.colour, thing.motion.direction, thing.motion.spins, thing.motion.growth)
        for thing in scene.things
    ]
    parts = {
        "colour": Counter(thing.colour for thing in named) == Counter(thing.colour for thing in wanted),
        "shape": Counter(thing.shape for thing in named) == Counter(thing.shape for thing in wanted),
        "number": len(named) == len(wanted),
        "together": Counter((t.colour, t.shape) for t in named) == Counter((t.colour, t.shape) for t in wanted),
        "motion": Counter(named) == Counter(wanted),
    }
    right = all(parts.values())
    told = re.search(r"\b(\w+) background\b|\bbackground (?:is|stays) (\w+)\b", caption.lower())
    if told:
        parts["background"] = scene.background in told.groups()
    return Verdict(right, parts, "; ".join(map(_spoken, named)) or "nothing named")


def _spoken(thing: Named) -> str:
    does = [word for word in (thing.direction, "spins" if thing.spins else None, thing.growth) if word]
    return f"{thing.colour or 'no colour'} {thing.shape}{': ' if does else ''}{', '.join(does)}"
