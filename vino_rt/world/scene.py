"""What there is in the small world and where it is at a given time; knows no pixels and no words beyond its own names.

Coordinates are fractions of the canvas, x to the right and y downwards; lengths are fractions of the square root of
the canvas's area, so that a scene fits any size and a circle stays round.
"""

import math
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 36, 36), "orange": (248, 138, 18), "yellow": (244, 222, 40), "green": (38, 168, 72),
    "cyan": (46, 202, 220), "blue": (38, 84, 224), "purple": (134, 48, 196), "pink": (250, 122, 184),
}  # fmt: skip
"""Name to sRGB of a thing; hues lie at least 20 degrees apart."""
BACKGROUNDS = {
    "black": (12, 12, 12), "white": (244, 244, 244), "gray": (128, 128, 128), "navy": (16, 20, 72),
    "beige": (236, 220, 190),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"tiny": 0.12, "small": 0.155, "large": 0.22, "huge": 0.33}
"""Name to radius; `tiny`, for scenes of three things and more, and `huge`, for close views, are not spoken of."""
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
SPEEDS = {"slowly": 0.12, "quickly": 0.25}
"""Name to distance in a second, as a share of the canvas's width or height, whichever the direction is along."""
SPIN = 90.0
"""Degrees a spinning thing turns in a second, clockwise."""
GROWTH = {"grows": 0.25, "shrinks": -0.2}
"""Name to the change of radius in a second, as a share of the radius at the start."""
FPS = 8.0
"""Frames in a second of a clip."""


@dataclass(frozen=True)
class Motion:
    """What a thing does over time; the default is to rest."""

    direction: str | None = None
    """One of `DIRECTIONS`."""
    speed: str = "quickly"
    """One of `SPEEDS`; means nothing without a direction."""
    spins: bool = False
    growth: str | None = None
    """One of `GROWTH`."""

    @property
    def rests(self) -> bool:
        """Whether nothing changes."""
        return self.direction is None and not self.spins and self.growth is None


@dataclass(frozen=True)
class Pose:
    """Where a thing is at one moment: centre (fractions of width and height), radius and angle in degrees."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Thing:
    """One shape; x, y are its centre at time 0."""

    shape: str
    colour: str
    x: float
    y: float
    size: str = "large"
    texture: str = "plain"
    motion: Motion = Motion()

    def __post_init__(self) -> None:
        assert self.shape in SHAPES, f"unknown shape {self.shape}"
        assert self.colour in COLOURS, f"unknown colour {self.colour}"
        assert self.size in SIZES, f"unknown size {self.size}"
        assert self.texture in TEXTURES, f"unknown texture {self.texture}"

    def pose(self, seconds: float) -> Pose:
        """Where the thing is after some time."""
        motion = self.motion
        dx, dy = DIRECTIONS[motion.direction] if motion.direction else (0.0, 0.0)
        way = SPEEDS[motion.speed] * seconds
        growth = GROWTH[motion.growth] * seconds if motion.growth else 0.0
        return Pose(
            self.x + dx * way,
            self.y + dy * way,
            SIZES[self.size] * (1.0 + growth),
            SPIN * seconds if motion.spins else 0.0,
        )


@dataclass(frozen=True)
class Scene:
    """Things on a background; later ones lie over earlier ones. No two touch while time is within a clip's length."""

    background: str
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        assert self.background in BACKGROUNDS, f"unknown background {self.background}"

    @property
    def rests(self) -> bool:
        """Whether nothing in it ever changes."""
        return all(thing.motion.rests for thing in self.things)


def gap(first: Pose, second: Pose, aspect: float = 1.0) -> float:
    """Distance between the rims of two things' circles on a canvas of width / height `aspect`; negative: they meet."""
    dx, dy = (first.x - second.x) * math.sqrt(aspect), (first.y - second.y) / math.sqrt(aspect)
    return math.hypot(dx, dy) - first.radius - second.radius
