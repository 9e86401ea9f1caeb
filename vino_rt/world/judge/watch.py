"""What a clip shows: things followed from frame to frame, where they go, how fast, whether they turn and grow.

It knows what `see` says of single frames and nothing of prompts or scenes; numbers in a second come from lines laid
through all frames, so one bad frame does not matter.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.judge.see import Pixels, Seen, SeenThing, see_all
from vino_rt.world.judge.shapes import TURN, wrap
from vino_rt.world.scene import DIRECTIONS, FPS, GROWTH, SPEEDS, SPIN

STRAY = 0.15
"""How far (root of the canvas's area) a thing may lie from where it was seen last; the fastest moves 0.03 a frame."""
OTHER_COLOUR, OTHER_SHAPE = 0.12, 0.04
"""What a change of colour or shape weighs against distance when things are linked."""
PATIENCE = 4
"""Frames a thing may be gone and still be the same."""
STEADY = 0.5
"""Share of all frames in which a thing must be seen to count as one; the rest are flickers."""
MOVES = 0.4 * min(SPEEDS.values())
"""Speed (canvas in a second) from which a thing moves."""
CLEAR_WAY = 1.7
"""How much faster than across its direction a thing must move along it; about 30 degrees."""
FAST = math.sqrt(math.prod(SPEEDS.values()))
"""Speed between "slowly" and "quickly"."""
TURNS = 0.5 * SPIN
GROWS = 0.45 * min(abs(rate) for rate in GROWTH.values())


@dataclass(frozen=True)
class Track:
    """One thing over a clip."""

    shape: str
    """The commonest of its frames, like the colour."""
    colour: str
    first: SeenThing
    last: SeenThing
    frames: int
    """In how many frames it was seen."""
    direction: str | None
    speed: str | None
    """Name in SPEEDS; None without a direction."""
    spins: bool
    """Always False for circle, ring and blob, on which it does not show."""
    growth: str | None

    def __str__(self) -> str:
        parts = [f"goes {self.direction} {self.speed}"] if self.direction else []
        parts += ["spins"] * self.spins + ([self.growth] if self.growth else [])
        return (
            f"{self.colour} {self.shape} at ({self.first.x:.2f}, {self.first.y:.2f}) {' and '.join(parts) or 'rests'}"
        )


def watch(frames: Pixels, fps: float = FPS) -> tuple[Track, ...]:
    """The things of a clip uint8 [F, H, W, 3] that are seen in at least half of its frames, from left to right.

    With a single frame everything rests.
    """
    return follow(see_all(frames), frames.shape[2] / frames.shape[1], fps)


def follow(seen: Sequence[Seen], aspect: float, fps: float = FPS) -> tuple[Track, ...]:
    """The things of a clip, from what each of its frames shows; `aspect` is width / height."""
    chains: list[list[tuple[int, SeenThing]]] = []
    for frame, picture in enumerate(seen):
        _link(chains, frame, picture.things, aspect)
    needed = max(1, math.ceil(STEADY * len(seen)))
    tracks = [_track(chain, fps) for chain in chains if len(chain) >= needed]
    return tuple(sorted(tracks, key=lambda track: track.first.x))


def _link(chains: list[list[tuple[int, SeenThing]]], frame: int, things: Sequence[SeenThing], aspect: float) -> None:
    """Append each thing to the chain that it continues best, nearest pairs first, or begin a new chain with it."""
    stretch = math.sqrt(aspect)
    pairs = []
    for i, chain in enumerate(chains):
        before, last = chain[-1]
        if frame - before > PATIENCE:
            continue
        for j, thing in enumerate(things):
            way = math.hypot((thing.x - last.x) * stretch, (thing.y - last.y) / stretch)
            if way <= STRAY:
                change = OTHER_COLOUR * (thing.colour != last.colour) + OTHER_SHAPE * (thing.shape != last.shape)
                pairs.append((way + change, i, j))
    continued: set[int] = set()
    linked: set[int] = set()
    for _, i, j in sorted(pairs):
        if i not in continued and j not in linked:
            continued.add(i)
            linked.add(j)
            chains[i].append((frame, things[j]))
    chains.extend([(frame, thing)] for j, thing in enumerate(things) if j not in linked)


def _track(chain: Sequence[tuple[int, SeenThing]], fps: float) -> Track:
    things = [thing for _, thing in chain]
    times = np.array([frame for frame, _ in chain]) / fps
    shape = Counter(thing.shape for thing in things).most_common(1)[0][0]
    colour = Counter(thing.colour for thing in things).most_common(1)[0][0]
    vx, _ = _line(times, [thing.x for thing in things])
    vy, _ = _line(times, [thing.y for thing in things])
    direction = _direction(vx, vy)
    rate, start = _line(times, [math.sqrt(thing.area_fraction) for thing in things])
    change = rate / start if start > 0 else 0.0
    return Track(
        shape,
        colour,
        things[0],
        things[-1],
        len(things),
        direction,
        ("quickly" if max(abs(vx), abs(vy)) > FAST else "slowly") if direction else None,
        _turning(chain, shape, fps) > TURNS,
        None if abs(change) < GROWS else "grows" if change > 0 else "shrinks",
    )


def _line(times: NDArray[np.float64], values: Sequence[float]) -> tuple[float, float]:
    """Slope and value at the first time of the straight line through the points, least squares."""
    t, v = times - times.mean(), np.array(values)
    spread = float(t @ t)
    slope = float(t @ v) / spread if spread > 0 else 0.0
    return slope, float(v.mean()) + slope * float(t[0])


def _direction(vx: float, vy: float) -> str | None:
    """Name of a velocity's direction; None when it is slow or between two directions."""
    along, across = max(abs(vx), abs(vy)), min(abs(vx), abs(vy))
    if along < MOVES or along < CLEAR_WAY * across:
        return None
    return max(DIRECTIONS, key=lambda name: DIRECTIONS[name][0] * vx + DIRECTIONS[name][1] * vy)


def _turning(chain: Sequence[tuple[int, SeenThing]], shape: str, fps: float) -> float:
    """Degrees in a second that a thing of that shape turns, either way; 0 where it does not show.

    Angles are known up to the shape's symmetry only; from one frame to the next the smaller turn is taken.
    """
    seen = [(frame, thing.angle) for frame, thing in chain if thing.shape == shape]
    if shape not in TURN or len(seen) < 2:
        return 0.0
    angles = [0.0]
    for (_, before), (_, after) in pairwise(seen):
        angles.append(angles[-1] + wrap(after - before, TURN[shape]))
    return abs(_line(np.array([frame for frame, _ in seen]) / fps, angles)[0])
