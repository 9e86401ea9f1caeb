"""Names of measured colours, and how much of a pixel a colour covers.

Names are found in CIE Lab, where distances are those that eyes see; coverage in sRGB, because there the world's pixels
are straight mixtures of a thing and what lies behind it. It knows the world's colours, not where pixels lie.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.draw import DARKER
from vino_rt.world.scene import BACKGROUNDS, COLOURS

Floats = NDArray[np.float32]

NAMES = tuple(COLOURS)
SHADES = (1.0, (1.0 + DARKER) / 2, DARKER)
"""Brightness of plain colour, of texture blurred into it, and of a texture's marks."""

RIVAL = 0.15
"""Share of the votes from which a colour is looked at closely."""
FOREIGN = 45.0
"""Distance to a colour's mixtures (sRGB units) from which a pixel belongs to something of another colour."""
DEAD = 0.04
"""Share of a pixel at either end that counts as none or all of it: noise is not coverage."""


def lab(pixels: NDArray[np.generic]) -> Floats:
    """CIE Lab (D65) of sRGB values in 0..255, [..., 3] to float32 [..., 3]."""
    ground, matrix = _tables()
    linear = ground[np.clip(np.rint(pixels.astype(np.float32)), 0, 255).astype(np.uint8)]
    xyz = linear @ matrix
    # CIE 15: a cube root with a straight foot below (6/29)^3.
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * (24389 / 3132) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


@cache
def _tables() -> tuple[Floats, Floats]:
    """sRGB's decoding curve (IEC 61966-2-1) of all 256 values, and linear RGB to XYZ over the white point."""
    value = np.arange(256) / 255
    ground = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    return ground.astype(np.float32), (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T.astype(np.float32)


@cache
def _colours() -> Floats:
    return np.array(list(COLOURS.values()), np.float32)


@cache
def _swatches() -> Floats:
    """Lab of every colour in every shade, [colours * shades, 3]."""
    return lab(np.array([[shade * channel for channel in COLOURS[name]] for name in NAMES for shade in SHADES]))


@cache
def _backgrounds() -> Floats:
    return lab(np.array(list(BACKGROUNDS.values())))


def background_name(colour: NDArray[np.generic]) -> str:
    """Nearest name in BACKGROUNDS of an sRGB colour [3]."""
    return tuple(BACKGROUNDS)[int(((_backgrounds() - lab(colour)) ** 2).sum(axis=-1).argmin())]


def commonest(pixels: Floats, behind: Floats) -> tuple[str, Floats]:
    """Name of the colour that most sRGB pixels [N, 3] are of, in any shade or mixed with `behind` [3], and its measure.

    Every pixel votes for the name nearest to it; of several with many votes the one wins whose mixtures explain all
    pixels best, for smeared edges look like paler colours. The measure is what the colour is when unshaded, taken from
    the half of the name's pixels that lies nearest to it.
    """
    swatches, points = _swatches(), lab(pixels)
    distance = (points**2).sum(axis=1)[:, None] + (swatches**2).sum(axis=1) - 2 * points @ swatches.T
    nearest = distance.argmin(axis=1)
    counts = np.bincount(nearest // len(SHADES), minlength=len(NAMES))
    rivals = np.flatnonzero(counts >= RIVAL * len(pixels))
    winner = int(counts.argmax())
    if len(rivals) > 1:
        unexplained = [unmix(pixels, behind, _colours()[rival], DARKER)[1] for rival in rivals]
        winner = int(rivals[np.argmin([np.minimum(rest, FOREIGN).mean() for rest in unexplained])])
    own = nearest // len(SHADES) == winner
    off = distance.min(axis=1)
    near = own & (off <= np.median(off[own]))
    shade = np.array(SHADES, np.float32)[nearest[near] % len(SHADES)]
    return NAMES[winner], np.median(pixels[near] / shade[:, None], axis=0).astype(np.float32)


def unmix(pixels: Floats, behind: Floats, colour: Floats, darkest: float) -> tuple[Floats, Floats]:
    """Explain sRGB pixels [..., 3] as a mixture of `behind` [3] and `colour` [3] times a shade from `darkest` to 1.

    Returns the share 0..1 that the colour covers, and the distance (sRGB units) from the pixel to the nearest mixture.
    """
    away = pixels - behind
    from_behind = np.sqrt((away**2).sum(axis=-1))
    shade = np.clip(pixels @ colour / max(float(colour @ colour), 1.0), darkest, 1.0)
    to_colour = np.sqrt(((pixels - shade[..., None] * colour) ** 2).sum(axis=-1))
    share = np.clip((from_behind / np.maximum(from_behind + to_colour, 1.0) - DEAD) / (1 - 2 * DEAD), 0, 1)
    # The nearest mixture with that shade: the height of the triangle over its base from `behind` to the colour.
    base = shade[..., None] * colour - behind
    along = np.clip((away * base).sum(axis=-1) / np.maximum((base**2).sum(axis=-1), 1.0), 0, 1)
    residual = np.sqrt(((away - along[..., None] * base) ** 2).sum(axis=-1))
    return share.astype(np.float32), residual.astype(np.float32)
