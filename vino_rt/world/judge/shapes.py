"""Which shape a coverage map shows: polar templates of the renderer's own shapes, compared at every angle at once.

A map is sampled on circles around its centre, in units of the radius of the disc of the same area, so place and size
drop out; a turn is then a shift along the angle, and a Fourier transform tries all of them. It knows coverage, no
colour.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.draw import coverage
from vino_rt.world.scene import SHAPES, SIZES, Scene, Thing

Floats = NDArray[np.float32]

RADII, ANGLES = 20, 72
REACH = 1.8
"""Outermost circle, in radii of the disc of the same area; a star's tips lie at 1.7."""
TEMPLATE = 192
"""Side of the canvas on which templates are drawn, in pixels."""
SOFT = (0.09, 0.22)
"""Blurs of each shape's templates, in radii of the disc of the same area (8 pixels for a small thing on 64 x 64): what
is drawn sharply, and what a decoder smears."""
SMEARED = (0.0, 0.015)
"""What each blur is taken off for: smeared templates are alike, a sharp one says more."""
TURN = {"square": 90.0, "triangle": 120.0, "star": 72.0, "cross": 90.0}
"""Degrees after which a shape looks the same; the others look the same at any angle."""


@dataclass(frozen=True)
class Form:
    """A shape and how it lies: centre in pixels (x to the right, y down), radius in pixels as scenes mean it."""

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    """Degrees clockwise, within half a turn of symmetry from 0; 0 for circle and ring."""
    score: float
    """Correlation with the shape's template, at most 1, less for a smeared one."""


def form(cover: Floats) -> Form:
    """The shape that a coverage map [H, W] in 0..1 with a non-zero sum shows best."""
    x, y, disc = _centre(cover)
    spectrum = np.fft.rfft(_normed(_polar(cover, x, y, disc)), axis=1)
    templates, scale = _templates()
    curves = np.fft.irfft((spectrum * templates).sum(axis=1), n=ANGLES, axis=1)
    best = curves.max(axis=1) - np.tile(np.array(SMEARED, np.float32), len(SHAPES))
    winner = int(best.argmax())
    shape = SHAPES[winner // len(SOFT)]
    return Form(shape, x, y, disc * scale[winner // len(SOFT)], _angle(curves[winner], shape), float(best[winner]))


def _centre(cover: Floats) -> tuple[float, float, float]:
    """Centre of mass and radius of the disc of the same area, in pixels."""
    total = float(cover.sum())
    x = float(cover.sum(axis=0) @ (np.arange(cover.shape[1], dtype=np.float32) + 0.5)) / total
    y = float(cover.sum(axis=1) @ (np.arange(cover.shape[0], dtype=np.float32) + 0.5)) / total
    return x, y, math.sqrt(total / math.pi)


@cache
def _circles() -> tuple[Floats, Floats, Floats]:
    """Offsets x, y [RADII, ANGLES] of the samples from the centre in disc radii, and the root of their weight."""
    radius = (np.arange(RADII, dtype=np.float32) + 0.5) * (REACH / RADII)
    angle = np.arange(ANGLES, dtype=np.float32) * np.float32(2 * math.pi / ANGLES)
    return radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), np.sqrt(radius)[:, None]


def _polar(cover: Floats, x: float, y: float, disc: float) -> Floats:
    """The map on circles around (x, y), bilinear, [RADII, ANGLES]; outside the map there is nothing."""
    across, down, _ = _circles()
    height, width = cover.shape
    padded = np.zeros((height + 3, width + 3), np.float32)
    padded[1:-2, 1:-2] = cover
    # Pixel i's centre lies at i + 0.5; padding moves it by one.
    u = np.clip(across * np.float32(disc) + np.float32(x + 0.5), 0, width + 1)
    v = np.clip(down * np.float32(disc) + np.float32(y + 0.5), 0, height + 1)
    left, top = u.astype(np.int32), v.astype(np.int32)
    u, v = u - left, v - top
    flat, corner = padded.reshape(-1), top * (width + 3) + left
    upper = flat[corner] * (1 - u) + flat[corner + 1] * u
    corner += width + 3
    lower = flat[corner] * (1 - u) + flat[corner + 1] * u
    between: Floats = upper * (1 - v) + lower * v
    return between


def _normed(polar: Floats) -> Floats:
    """Weighted by area, without its mean and of length 1, so that a product of two is a correlation."""
    weight = _circles()[2]
    square = weight**2
    mean = (polar * square).sum() / (square.sum() * ANGLES)
    centred = (polar - mean) * weight
    normed: Floats = centred / np.maximum(np.sqrt((centred**2).sum()), np.float32(1e-6))
    return normed


@cache
def _templates() -> tuple[NDArray[np.complex64], tuple[float, ...]]:
    """Conjugate spectra of the upright shapes, [shapes * blurs, RADII, ANGLES / 2 + 1]; and radius per disc."""
    spectra, scale = [], []
    for shape in SHAPES:
        scene = Scene("black", (Thing(shape, "red", 0.5, 0.5, "large"),))
        cover = coverage(0, scene, TEMPLATE, TEMPLATE, 0.0)
        x, y, disc = _centre(cover)
        for soft in SOFT:
            spectra.append(np.conj(np.fft.rfft(_normed(_polar(blur(cover, soft * disc), x, y, disc)), axis=1)))
        scale.append(SIZES["large"] * TEMPLATE / disc)
    return np.stack(spectra).astype(np.complex64), tuple(scale)


def blur(picture: Floats, sigma: float) -> Floats:
    """Gaussian blur of float32 [H, W, ...] over its first two axes; `sigma` in pixels, the rim is repeated."""
    reach = math.ceil(3 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        edges = [(reach, reach) if index == axis else (0, 0) for index in range(picture.ndim)]
        padded, length = np.pad(picture, edges, mode="edge"), picture.shape[axis]
        picture = sum(
            (tap * np.take(padded, range(start, start + length), axis=axis) for start, tap in enumerate(taps)),
            start=np.zeros_like(picture),
        )
    return picture


def _angle(curve: Floats, shape: str) -> float:
    """Degrees of the curve's peak, between its samples by a parabola through the highest three."""
    if shape not in TURN:
        return 0.0
    top = int(curve.argmax())
    before, here, after = (float(curve[(top + step) % ANGLES]) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return wrap((top + offset) * 360 / ANGLES, TURN[shape])


def wrap(degrees: float, turn: float) -> float:
    """The angle that looks the same and lies within half of `turn` from 0."""
    return (degrees + turn / 2) % turn - turn / 2
