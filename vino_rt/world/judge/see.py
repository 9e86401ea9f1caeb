"""What a picture shows: its background and its things with colour, shape, centre and size, from pixels alone.

It knows the world's colours and shapes but no scene, no prompt and no time. Made for pictures from a decoder as well:
a little blur, noise or a shift of colours changes nothing it says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.draw import DARKER
from vino_rt.world.judge.colours import FOREIGN, background_name, commonest, unmix
from vino_rt.world.judge.regions import Labels, Mask, grow, label, shrink
from vino_rt.world.judge.shapes import Form, form
from vino_rt.world.scene import SIZES

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

CONTRAST = 30.0
"""Distance to the background (sRGB units) from which a pixel is of a thing; the faintest texture differs by 62."""
SPECK = 25 / 64**2
"""Share of the canvas below which a region is dirt."""
CLEAR = 0.7
"""Correlation with the nearest shape below which a thing has no shape of the world: it is called a blob."""
DARK = 60.0
"""Mean of a background's channels below which a half-covered pixel looks like a texture's mark."""
DOUBT = 0.02
"""Correlation by which the less likely reading of a thing, with a texture or without, must be better."""


@dataclass(frozen=True)
class SeenThing:
    """One thing in a picture; lengths as in scenes (fractions of the canvas, radius of the root of its area)."""

    shape: str
    """One of SHAPES, or "blob"."""
    colour: str
    x: float
    y: float
    radius: float
    area_fraction: float
    """Share of the canvas that it covers; a texture's marks count in part where they are like the background."""
    angle: float = 0.0
    """Degrees clockwise, within the shape's symmetry."""
    score: float = 1.0
    """How well the shape fits, at most 1."""

    @property
    def size(self) -> str:
        """Nearest name in SIZES."""
        return min(SIZES, key=lambda name: abs(SIZES[name] - self.radius))

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} at ({self.x:.2f}, {self.y:.2f})"


@dataclass(frozen=True)
class Seen:
    """What one picture shows; things from left to right."""

    background: str
    things: tuple[SeenThing, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.things)) or 'nothing'} on {self.background}"


def see(frame: Pixels) -> Seen:
    """What a picture uint8 [H, W, 3] shows."""
    return see_all(frame[None])[0]


def see_all(frames: Pixels) -> tuple[Seen, ...]:
    """What each picture of uint8 [F, H, W, 3] shows, each on its own."""
    assert frames.dtype == np.uint8, f"{frames.dtype}: pixels are uint8"
    assert frames.shape[3:] == (3,), f"{frames.shape}: frames are [F, H, W, 3]"
    pixels = frames.astype(np.float32)
    behind = _backgrounds(frames)
    away = pixels - behind[:, None, None]
    labels, areas = label((away**2).sum(axis=-1) > CONTRAST**2)
    smallest = SPECK * frames.shape[1] * frames.shape[2]
    big = areas >= smallest
    return tuple(
        Seen(
            background_name(behind[index]),
            tuple(sorted(_things(pixels[index], labels[index], big, behind[index], smallest), key=lambda t: t.x)),
        )
        for index in range(len(frames))
    )


def _backgrounds(frames: Pixels) -> Floats:
    """Median colour of each picture's border, float32 [F, 3]: things may reach it in places."""
    edge = max(1, min(frames.shape[1:3]) // 32)
    sides = (frames[:, :edge], frames[:, -edge:], frames[:, :, :edge], frames[:, :, -edge:])
    border = np.concatenate([side.reshape(len(frames), -1, 3) for side in sides], axis=1)
    median: Floats = np.median(border, axis=1).astype(np.float32)
    return median


def _things(pixels: Floats, labels: Labels, big: Mask, behind: Floats, smallest: float) -> Iterator[SeenThing]:
    """The things of one picture, region by region."""
    height, width = labels.shape
    root = math.sqrt(height * width)
    for number in np.unique(labels[big[labels]]):
        region = labels == number
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        # Two pixels of margin: faint edges outside the region still count towards coverage.
        top, left = max(0, int(rows[0]) - 2), max(0, int(columns[0]) - 2)
        box = np.s_[top : int(rows[-1]) + 3, left : int(columns[-1]) + 3]
        reach = grow(grow(region[box])) & ((labels[box] == 0) | region[box])
        for colour, covers in _layers(pixels[box], region[box], reach, behind, smallest):
            found = _reading(*covers, float(behind.mean()) < DARK)
            yield SeenThing(
                found.shape if found.score >= CLEAR else "blob",
                colour,
                (left + found.x) / width,
                (top + found.y) / height,
                found.radius / root,
                float(covers[1].sum()) / (height * width),
                found.angle,
                found.score,
            )


def _reading(textured: Floats, plain: Floats, dark: bool) -> Form:
    """Shape and size by the coverage with a texture or by that without.

    When in doubt there is no texture on a dark background, where soft edges look like one, and on others there is: what
    has none looks the same in both readings.
    """
    marked, unmarked = form(textured), form(plain)
    return marked if marked.score > unmarked.score + (DOUBT if dark else -DOUBT) else unmarked


def _layers(
    pixels: Floats, region: Mask, reach: Mask, behind: Floats, smallest: float
) -> Iterator[tuple[str, tuple[Floats, Floats]]]:
    """Split a region by colour: for each thing in it its name and its coverage [H, W], with and without a texture.

    The commonest colour first; what no mixture of it and the background explains is looked at again.
    """
    while True:
        core = shrink(region)
        name, colour = commonest(pixels[core if core.any() else region], behind)
        share, residual = unmix(pixels, behind, colour, DARKER)
        plain, _ = unmix(pixels, behind, colour, 1.0)
        rest = region & (residual > FOREIGN)
        # Fewer each time: a colour that explains nothing, as in pure noise, must not be looked for for ever.
        left = np.count_nonzero(rest)
        another = smallest <= left < np.count_nonzero(region) and np.count_nonzero(shrink(rest)) >= smallest / 3
        own = reach & ~grow(rest) if another else reach
        for part in _apart(share, own, smallest):
            yield name, (np.where(part, share, 0), np.where(part, plain, 0))
        if not another:
            return
        region, reach = rest, reach & grow(rest)


def _apart(share: Floats, reach: Mask, smallest: float) -> Iterator[Mask]:
    """Where each of several things of one colour lies that only blur joins; no thing where nothing is large enough."""
    labels, areas = label((share > 0.5) & reach)
    numbers = np.flatnonzero(areas >= smallest * 0.8)
    for number in numbers:
        own = labels == number
        yield reach if len(numbers) == 1 else grow(grow(own)) & ((labels == 0) | own)
