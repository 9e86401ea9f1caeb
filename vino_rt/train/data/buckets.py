"""Dynamic resolution buckets: the sizes a data set is cut to, and which of them a file goes to.

Samples keep their aspect ratio as nearly as the list allows, at a similar area (MODEL.md section 6). Pure arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vino_rt.errors import InputError
from vino_rt.request import FRAME_STEP
from vino_rt.train.data.records import SHAPE, SHORT, SMALL, Unusable

UNIT = 16
"""Pixels of a patch of latents: sides are multiples of it."""
ASPECT_STEP = 0.05
"""Aspect ratios within one such step (of the natural logarithm) count as equal: then the larger bucket wins."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One size of training targets, in pixels and frames. Raises InputError for numbers that are none."""

    width: int
    height: int
    frames: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.frames) < 1 or (self.frames - 1) % FRAME_STEP:
            raise InputError(f"bucket {self}: sides must be at least 1 pixel and frames 1, 5, 9, ...")

    def __str__(self) -> str:
        return f"{self.frames}x{self.width}x{self.height}"


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How pixels are brought to size. Raises InputError for buckets off the unit, or none."""

    buckets: tuple[Bucket, ...]
    area: int
    """Pixels that an image reference is letterboxed to, where it does not decide the size of the target."""
    unit: int = UNIT
    max_enlarge: float = 1.0
    """A file is left out rather than enlarged by more than this."""
    min_kept: float = 0.5
    """A file is left out when less than this share of its picture would survive the crop."""

    def __post_init__(self) -> None:
        if not self.buckets:
            raise InputError("no buckets; name at least one width, height and frames, or make a list with make_buckets")
        for bucket in self.buckets:
            if bucket.width % self.unit or bucket.height % self.unit:
                raise InputError(f"bucket {bucket}: width and height must be multiples of {self.unit}")
        if self.area < self.unit**2 or not self.max_enlarge > 0 or not 0 <= self.min_kept <= 1:
            raise InputError(
                f"area {self.area}, max_enlarge {self.max_enlarge}, min_kept {self.min_kept}: legal are an area of at "
                f"least {self.unit}x{self.unit}, a factor above 0 and a share of 0 to 1"
            )


def make_buckets(
    area: int, unit: int = UNIT, *, frames: Sequence[int] = (1,), max_aspect: float = 2.0
) -> tuple[Bucket, ...]:
    """Sizes of about `area` pixels, sides multiples of `unit`, aspect ratios from 1/max_aspect to max_aspect.

    For each width the height nearest to the area; one list for each number of frames. Raises InputError for an area
    below one unit or an aspect below 1.
    """
    if area < unit**2 or max_aspect < 1:
        raise InputError(f"area {area} and aspect {max_aspect}: legal are at least {unit}x{unit} and at least 1")
    sizes = set()
    for columns in range(1, math.ceil(math.sqrt(area * max_aspect) / unit) + 1):
        rows = max(1, round(area / (columns * unit) / unit))
        if max(rows / columns, columns / rows) <= max_aspect + 1e-9:
            sizes |= {(columns * unit, rows * unit), (rows * unit, columns * unit)}
    return tuple(Bucket(width, height, count) for count in frames for width, height in sorted(sizes))


def choose_bucket(width: int, height: int, frames: int, sizing: Sizing) -> Bucket:
    """The bucket of a file of this size: `frames` is 1 for a picture; a clip goes to the longest it can fill.

    Among those, the one nearest in aspect ratio, and of equally near ones the largest that needs no more enlarging than
    `sizing` allows. Raises Unusable with the reason SHORT, SMALL or SHAPE.
    """
    fitting = [b for b in sizing.buckets if (b.frames == 1) == (frames == 1) and b.frames <= frames]
    if not fitting:
        legal = sorted({b.frames for b in sizing.buckets})
        raise Unusable(SHORT, f"{frames} frames; the buckets have {', '.join(map(str, legal))}")
    large = [b for b in fitting if max(b.width / width, b.height / height) <= sizing.max_enlarge + 1e-9]
    if not large:
        least = min(fitting, key=lambda b: b.width * b.height)
        raise Unusable(SMALL, f"{width}x{height}; the smallest bucket is {least.width}x{least.height}")

    def cost(bucket: Bucket) -> tuple[int, int, float]:
        distance = abs(math.log(width * bucket.height / (height * bucket.width)))
        return int(distance / ASPECT_STEP), -bucket.width * bucket.height, distance

    longest = max(b.frames for b in large)
    best = min((b for b in large if b.frames == longest), key=cost)
    kept = math.exp(-abs(math.log(width * best.height / (height * best.width))))
    if kept < sizing.min_kept:
        raise Unusable(SHAPE, f"{width}x{height} would keep {kept:.0%} of its picture in {best.width}x{best.height}")
    return best
