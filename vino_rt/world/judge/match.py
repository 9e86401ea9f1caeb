"""Which thing that was found is which thing that was wanted, and in what they agree.

It knows scenes and tracks; what of it makes an answer right stands in `verdict`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from vino_rt.world.judge.see import SeenThing
from vino_rt.world.judge.watch import Track
from vino_rt.world.layout import PLACES, place_of, relation
from vino_rt.world.scene import Scene, Thing
from vino_rt.world.words import GOAL_PHRASES, OPPOSITE, PLACE_PHRASES, RELATION_PHRASES, SPEED_WORDS

Pair = tuple[Thing, Track | None]

WRONG = 4.0
"""What a wrong colour or shape weighs against distance: more than the canvas is long."""
AT_PLACE = 0.16
"""How far from a named place's centre a thing may lie, on each axis; the next place is 0.25 away."""
THERE = 0.12
"""How far from its place a thing may lie that an edit puts or leaves there, in roots of the canvas's area."""


def pairs(wanted: Sequence[Thing], found: Sequence[Track], aspect: float) -> tuple[Pair, ...]:
    """Each wanted thing with the track that is most like it, no track twice; None where there are too few."""
    costs = sorted(
        (
            WRONG * (thing.colour != track.colour) + WRONG * (thing.shape != track.shape) + _way(thing, track, aspect),
            i,
            j,
        )
        for i, thing in enumerate(wanted)
        for j, track in enumerate(found)
    )
    chosen: dict[int, int] = {}
    for _, i, j in costs:
        if i not in chosen and j not in chosen.values():
            chosen[i] = j
    return tuple((thing, found[chosen[i]] if i in chosen else None) for i, thing in enumerate(wanted))


def _way(thing: Thing, track: Track, aspect: float) -> float:
    stretch = math.sqrt(aspect)
    return math.hypot((thing.x - track.first.x) * stretch, (thing.y - track.first.y) / stretch)


def looks(matched: Sequence[Pair], found: Sequence[Track]) -> dict[str, bool]:
    """Colours and shapes of all things right, each pair of both exactly as often as wanted, and nothing else there."""
    wanted = Counter((thing.colour, thing.shape) for thing, _ in matched)
    there = Counter((track.colour, track.shape) for track in found)
    return {
        "colour": all(track is not None and track.colour == thing.colour for thing, track in matched),
        "shape": all(track is not None and track.shape == thing.shape for thing, track in matched),
        "number": all(there[name] == count for name, count in wanted.items()),
        "alone": len(found) == len(matched),
    }


def moves(matched: Sequence[Pair], prompt: str) -> dict[str, bool]:
    """What things do: `motion` is right where the direction is, or, without one, what else a thing does.

    The parts `direction`, `spins`, `growth`, and `speed` where the prompt names one, are given on their own.
    """
    told = any(re.search(rf"\b{word}\b", prompt.lower()) for words in SPEED_WORDS.values() for word in words)
    parts = {
        "direction": all(track is not None and track.direction == thing.motion.direction for thing, track in matched),
        "spins": all(track is not None and track.spins == thing.motion.spins for thing, track in matched),
        "growth": all(track is not None and track.growth == thing.motion.growth for thing, track in matched),
        "motion": all(track is not None and _does(thing, track) for thing, track in matched),
    }
    if told:
        speeds = [(thing.motion.speed, track) for thing, track in matched if thing.motion.direction]
        parts["speed"] = all(track is not None and track.speed == speed for speed, track in speeds)
    return parts


def _does(thing: Thing, track: Track) -> bool:
    motion = thing.motion
    if motion.direction is not None or track.direction is not None:
        return track.direction == motion.direction
    return track.spins == motion.spins and track.growth == motion.growth


def surroundings(
    matched: Sequence[Pair], prompt: str, target: Scene, background: str, aspect: float
) -> dict[str, bool]:
    """Whether background, places and the side of another thing on which one lies are right, each if the prompt says."""
    parts = {}
    text = prompt.lower()
    if re.search(rf"\b{target.background}\b", text):
        parts["background"] = background == target.background
    places = [(name, track) for thing, track in matched if (name := _told_place(thing, text)) is not None]
    if places:
        parts["place"] = all(track is not None and _is_at(track.first, name) for name, track in places)
    if len(matched) == 2 and _tells_side(text):
        parts["side"] = _beside(matched[0], matched[1], aspect)
    return parts


def placed(matched: Sequence[Pair], free: Sequence[int], prompt: str, aspect: float) -> bool:
    """Whether all things lie where the target of an edit has them.

    Those at the indices `free`, which the edit puts somewhere, need only lie where the prompt says: at a named place,
    beside another thing, or anywhere if it does not say.
    """
    text = prompt.lower()
    for index, (thing, track) in enumerate(matched):
        name = _told_place(thing, text)
        if track is None:
            return False
        if index not in free:
            right = _way(thing, track, aspect) <= THERE
        elif name is not None:
            right = _is_at(track.first, name)
        elif _tells_side(text):
            # The thing it is put beside is the one the maker of edits takes: the first that rests.
            others = [pair for i, pair in enumerate(matched) if i != index and pair[0].motion.rests]
            right = bool(others) and _beside((thing, track), others[0], aspect)
        else:
            right = True
        if not right:
            return False
    return True


def _tells_side(text: str) -> bool:
    return any(re.search(rf"\b{phrase}\b", text) for phrases in RELATION_PHRASES.values() for phrase in phrases)


def _told_place(thing: Thing, text: str) -> str | None:
    """Name of a thing's place if the text names that place."""
    name = place_of(thing.x, thing.y)
    if name is None:
        return None
    # "at the top" also begins "at the top left".
    phrases = (*PLACE_PHRASES[name], *GOAL_PHRASES[name])
    return name if any(re.search(rf"\b{phrase}\b(?! (?:left|right|of)\b)", text) for phrase in phrases) else None


def _beside(first: Pair, second: Pair, aspect: float) -> bool:
    """Whether the first thing was found on the side of the second where the scene has it."""
    (thing, one), (other_thing, other) = first, second
    side = relation(thing, other_thing, aspect)
    if side is None:
        return True
    return one is not None and other is not None and _lies(one.first, other.first, side, aspect)


def _is_at(seen: SeenThing, name: str) -> bool:
    x, y = PLACES[name]
    return abs(seen.x - x) <= AT_PLACE and abs(seen.y - y) <= AT_PLACE


def _lies(one: SeenThing, other: SeenThing, side: str, aspect: float) -> bool:
    """Whether `one` lies on that side of `other`, within 45 degrees."""
    if side in ("right", "below"):
        one, other, side = other, one, OPPOSITE[side]
    dx, dy = (other.x - one.x) * math.sqrt(aspect), (other.y - one.y) / math.sqrt(aspect)
    return dx >= abs(dy) if side == "left" else dy >= abs(dx)
