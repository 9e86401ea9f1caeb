"""Where things may stand: named places, room for what moves, distance between things over the whole clip.

It knows geometry and chance, not words or tasks. All positions are fractions of the canvas, so any size will do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vino_rt.world.dice import Dice
from vino_rt.world.scene import COLOURS, DIRECTIONS, GROWTH, SHAPES, SPEEDS, Motion, Scene, Thing, gap

Spot = tuple[float | None, float | None]
ANYWHERE: Spot = (None, None)
PLACES = {
    "top left": (0.25, 0.25), "top": (0.5, 0.25), "top right": (0.75, 0.25),
    "left": (0.25, 0.5), "center": (0.5, 0.5), "right": (0.75, 0.5),
    "bottom left": (0.25, 0.75), "bottom": (0.5, 0.75), "bottom right": (0.75, 0.75),
}  # fmt: skip
"""Name to centre of a place."""
SIDES: dict[str, Spot] = {"left": (0.25, None), "right": (0.75, None), "top": (None, 0.25), "bottom": (None, 0.75)}
"""Name to the line a side is about: things there may lie on any line along it."""
LINES = (0.25, 0.5, 0.75)
"""Where things put anywhere lie on each axis, if there is room: on the lines of the places. Anywhere between, a small
model trained on a CPU learns colours and places and draws blobs (bench/LOG.md)."""
NEAR = 0.1
"""How far from a place's centre a thing may lie and still be said to be there; halfway to the next is 0.125."""
MARGIN = 0.02
"""Least distance from a thing's enclosing circle to the rim of the canvas."""
APART = 0.05
"""Least distance between two things' enclosing circles at any time."""
STEPS = 9
"""Moments of a clip at which distances are looked at; at the highest speeds things come 0.06 closer between two."""
ROUND = ("circle", "ring")
"""Shapes on which a spin does not show."""
TEXTURES = {"plain": 0.85, "striped": 0.075, "dotted": 0.075}
MOTIONS = {"moves": 0.66, "both": 0.08, "spins": 0.1, "grows": 0.06, "shrinks": 0.06, "rests": 0.04}
"""Weights of what a thing does; `both` moves and spins."""
TRIES = 12


@dataclass(frozen=True)
class Canvas:
    """What a layout must fit: width / height, and how many seconds it lasts."""

    aspect: float
    seconds: float


def place_of(x: float, y: float) -> str | None:
    """Name of the place a point lies at; None between places."""
    near = [name for name, (px, py) in PLACES.items() if abs(x - px) < NEAR and abs(y - py) < NEAR]
    return near[0] if near else None


def relation(first: Thing, second: Thing, aspect: float = 1.0) -> str | None:
    """How the first thing lies to the second: "left", "right", "above" or "below"; None where it lies aslant."""
    dx, dy = (first.x - second.x) * math.sqrt(aspect), (first.y - second.y) / math.sqrt(aspect)
    if abs(dx) > 1.5 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.5 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def any_thing(dice: Dice, unlike: Sequence[Thing] = (), sizes: Sequence[str] = ("small", "large")) -> Thing:
    """A resting thing whose colour and shape differ from those of all others given; it still needs a place."""
    colours = [colour for colour in COLOURS if colour not in {thing.colour for thing in unlike}]
    shapes = [shape for shape in SHAPES if shape not in {thing.shape for thing in unlike}]
    return Thing(dice.one(shapes), dice.one(colours), 0.5, 0.5, dice.one(sizes), dice.weighted(TEXTURES))


def any_motion(dice: Dice, shape: str) -> Motion:
    """Something a thing of that shape can be seen to do, in rare cases nothing."""
    what = dice.weighted({name: share for name, share in MOTIONS.items() if shape not in ROUND or name in _ROUND_TOO})
    if what in ("moves", "both"):
        return Motion(dice.one(tuple(DIRECTIONS)), dice.one(tuple(SPEEDS)), spins=what == "both")
    return Motion(spins=what == "spins", growth=what if what in GROWTH else None)


_ROUND_TOO = ("moves", "grows", "shrinks", "rests")


def put(dice: Dice, thing: Thing, canvas: Canvas, spot: Spot = ANYWHERE) -> Thing | None:
    """The thing at a spot, on some line on the axes that it leaves open, always on the canvas; None without room."""
    first, last = thing.pose(0.0), thing.pose(canvas.seconds)
    radius = max(first.radius, last.radius) + MARGIN
    stretch = math.sqrt(canvas.aspect)
    found = []
    for way, half, centre in (
        (last.x - first.x, radius / stretch, spot[0]),
        (last.y - first.y, radius * stretch, spot[1]),
    ):
        low, high = half - min(0.0, way), 1.0 - half - max(0.0, way)
        if low > high:
            return None
        if centre is None:
            lines = [line for line in LINES if low <= line <= high]
            found.append(dice.one(lines) if lines else dice.between(low, high))
            continue
        # Large things near the rim of a long canvas are moved inwards, as far as the place still bears its name.
        at = min(max(centre, low), high)
        if abs(at - centre) >= NEAR:
            return None
        found.append(at)
    return replace(thing, x=found[0], y=found[1])


def arrange(
    dice: Dice, things: Sequence[Thing], canvas: Canvas, spots: Sequence[Spot] = (), apart: float = APART
) -> tuple[Thing, ...] | None:
    """The things at their spots (anywhere if none are given), never closer than `apart`; None if no way was found."""
    spots = spots or (ANYWHERE,) * len(things)
    for _ in range(TRIES):
        placed = [put(dice, thing, canvas, spot) for thing, spot in zip(things, spots, strict=True)]
        done = tuple(thing for thing in placed if thing is not None)
        if len(done) < len(things):
            return None
        if separate(done, canvas, apart):
            return done
    return None


def separate(things: Sequence[Thing], canvas: Canvas, apart: float = APART) -> bool:
    """Whether no two things ever come closer than `apart`."""
    if len(things) < 2:
        return True
    moments = [0.0]
    if not all(thing.motion.rests for thing in things):
        moments = [canvas.seconds * step / (STEPS - 1) for step in range(STEPS)]
    for moment in moments:
        poses = [thing.pose(moment) for thing in things]
        for i, pose in enumerate(poses):
            if any(gap(pose, other, canvas.aspect) < apart for other in poses[:i]):
                return False
    return True


def plain_to_see(scene: Scene) -> bool:
    """Whether everything that a scene's things do shows: no round thing spins."""
    return not any(thing.motion.spins and thing.shape in ROUND for thing in scene.things)
