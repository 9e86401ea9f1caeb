"""Pictures of scenes: every shape is a signed distance to its rim, cut off over about one pixel, so edges are smooth.

It knows geometry and colour, not what a scene means. The centre of the pixel in row i and column j lies at
(j + 0.5, i + 0.5). Only the box around a thing is computed, all frames of it at once.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.scene import BACKGROUNDS, COLOURS, FPS, Scene, Thing

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

EXTENT = {"circle": 0.8, "square": 0.9, "triangle": 1.0, "star": 1.0, "cross": 0.88, "ring": 0.88}
"""How far a shape reaches from its centre as a share of its radius: full shapes reach less, so that areas compare."""
INNER = 0.45
"""Radius of a star's inner corners, of its tips' radius."""
HOLE = 0.55
"""Radius of a ring's hole, of its outer radius."""
ARM = 0.4
"""Width of a cross's arm, of its whole width."""
DARKER = 0.6
"""What the colour is multiplied by in stripes and dots."""
PERIOD = 0.5
"""Distance of stripes and of dots, in radii."""
STRIPE, DOT = 0.09, 0.13
"""Half the width of a stripe and the radius of a dot, in radii."""


def draw(scene: Scene, *, width: int, height: int, frames: int = 1, fps: float = FPS) -> Pixels:
    """Draw a scene as uint8 [frames, height, width, 3]; frame i shows it i / fps seconds after its start."""
    assert min(width, height, frames) > 0, f"nothing to draw: {width}x{height}, {frames} frames"
    canvas = np.empty((frames, height, width, 3), np.uint8)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        patch = _Patch(thing, width, height, [0.0] if thing.motion.rests else [i / fps for i in range(frames)])
        cover, colour = patch.cover(), patch.colour()
        for frame in range(frames):
            step = 0 if thing.motion.rests else frame
            here, box = patch.boxes(step)
            view = canvas[frame, here[0], here[1]]
            share = cover[step][box][..., None]
            paint = colour if colour.ndim == 1 else colour[step][box]
            view[:] = view + share * (paint - view) + np.float32(0.5)
    return canvas


def coverage(thing_index: int, scene: Scene, width: int, height: int, seconds: float) -> Floats:
    """How much of each pixel a thing covers at a time, float32 [height, width] in 0..1, other things left aside."""
    patch = _Patch(scene.things[thing_index], width, height, [seconds])
    whole = np.zeros((height, width), np.float32)
    here, box = patch.boxes(0)
    whole[here] = patch.cover()[0][box]
    return whole


class _Patch:
    """The box around a thing at several times, [T, S, S] pixels, and the thing's own coordinates in it, in radii."""

    def __init__(self, thing: Thing, width: int, height: int, times: list[float]) -> None:
        poses = [thing.pose(time) for time in times]
        self._thing, self._size = thing, (height, width)
        x = np.array([pose.x for pose in poses]) * width
        y = np.array([pose.y for pose in poses]) * height
        radius = np.array([pose.radius for pose in poses]) * math.sqrt(width * height)
        side = math.ceil(2 * float(radius.max()) * EXTENT[thing.shape]) + 3
        self._left = np.floor(x - side / 2 + 0.5).astype(int)
        self._top = np.floor(y - side / 2 + 0.5).astype(int)
        self._side = side
        pixel = np.arange(side) + 0.5
        u = ((self._left - x)[:, None] + pixel) / radius[:, None]
        v = ((self._top - y)[:, None] + pixel) / radius[:, None]
        self._u: Floats = u.astype(np.float32)[:, None, :]
        self._v: Floats = v.astype(np.float32)[:, :, None]
        self._radius: Floats = radius.astype(np.float32)[:, None, None]
        if thing.motion.spins:
            # A thing turned clockwise is looked up in its own upright frame: the coordinates turn the other way.
            angle = np.radians([pose.angle for pose in poses])
            cos, sin = (part.astype(np.float32)[:, None, None] for part in (np.cos(angle), np.sin(angle)))
            self._u, self._v = cos * self._u + sin * self._v, cos * self._v - sin * self._u

    def cover(self) -> Floats:
        """Share of each pixel that the thing covers, [T, S, S]."""
        return self._share(_RIMS[self._thing.shape](self._u, self._v))

    def colour(self) -> Floats:
        """Colour of the thing, [3], or [T, S, S, 3] where a texture makes it differ from pixel to pixel."""
        plain = np.array(COLOURS[self._thing.colour], np.float32)
        if self._thing.texture == "plain":
            return plain
        across = abs((self._u + PERIOD / 2) % PERIOD - PERIOD / 2)
        if self._thing.texture == "striped":
            marks = self._share(across - STRIPE)
        else:
            along = abs((self._v + PERIOD / 2) % PERIOD - PERIOD / 2)
            marks = self._share(np.hypot(across, along) - DOT)
        marks = np.broadcast_to(marks, (len(marks), self._side, self._side))
        return plain * (1 - (1 - DARKER) * marks[..., None])

    def boxes(self, step: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the canvas under the box at a time, and those of the box that lie on the canvas."""
        on_canvas, in_box = [], []
        for start, length in zip((int(self._top[step]), int(self._left[step])), self._size, strict=True):
            first, last = max(0, start), max(0, min(length, start + self._side))
            on_canvas.append(slice(first, last))
            in_box.append(slice(first - start, max(last - start, first - start)))
        return (on_canvas[0], on_canvas[1]), (in_box[0], in_box[1])

    def _share(self, distance: Floats) -> Floats:
        """Distance to a rim in radii, negative inside, to the share of a pixel inside it."""
        share: Floats = np.clip(np.float32(0.5) - distance * self._radius, 0, 1)
        return share


def _circle(u: Floats, v: Floats) -> Floats:
    rim: Floats = np.sqrt(u * u + v * v) - np.float32(EXTENT["circle"])
    return rim


def _ring(u: Floats, v: Floats) -> Floats:
    outer = EXTENT["ring"]
    middle, half = np.float32(outer * (1 + HOLE) / 2), np.float32(outer * (1 - HOLE) / 2)
    rim: Floats = abs(np.sqrt(u * u + v * v) - middle) - half
    return rim


def _square(u: Floats, v: Floats) -> Floats:
    rim: Floats = np.maximum(abs(u), abs(v)) - np.float32(EXTENT["square"] / math.sqrt(2))
    return rim


def _triangle(u: Floats, v: Floats) -> Floats:
    """Point up; the centre is that of the enclosing circle, so the base lies half a radius below it."""
    slopes = abs(u) * np.float32(math.sqrt(3) / 2) - v * np.float32(0.5)
    rim: Floats = np.maximum(slopes, v) - np.float32(EXTENT["triangle"] / 2)
    return rim


def _cross(u: Floats, v: Floats) -> Floats:
    # The corners of the arms lie on the enclosing circle.
    length = EXTENT["cross"] / math.hypot(1, ARM)
    long, wide = np.float32(length), np.float32(length * ARM)
    across, along = abs(u), abs(v)
    rim: Floats = np.minimum(np.maximum(across - long, along - wide), np.maximum(across - wide, along - long))
    return rim


def _star(u: Floats, v: Floats) -> Floats:
    """Five points, one up: all ten half points are folded onto the one right of the upper tip."""
    fold = math.radians(36)
    cos, sin = np.float32(math.cos(fold)), np.float32(math.sin(fold))
    x: Floats = abs(u)
    y: Floats = -v
    for _ in range(2):
        over: Floats = np.maximum(x * cos - y * sin, np.float32(0))
        x, y = abs(x - np.float32(2) * cos * over), y + np.float32(2) * sin * over
    tip = EXTENT["star"]
    inner = tip * INNER
    normal = (tip - inner * math.cos(fold), inner * math.sin(fold))
    norm = math.hypot(*normal)
    rim: Floats = x * np.float32(normal[0] / norm) + (y - np.float32(tip)) * np.float32(normal[1] / norm)
    return rim


_RIMS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
