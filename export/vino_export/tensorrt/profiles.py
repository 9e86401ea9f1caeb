"""Optimisation profiles of plans: one per bucket, some for reference pictures, and one for the small examples that
`vino_export.verify` runs.

What a step computes has a single size per bucket, because `vino_rt.bucket.choose` pads to it. What runs once per
request, such as the connector, has a range. Sizes are named as in `vino_rt.models.vino.kinds` and `model_kinds`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vino_rt.backends.base import Kind, TensorSpec
from vino_rt.bucket import Bucket, patch_grid
from vino_rt.errors import EngineError
from vino_rt.models.vino.prepare import MAX_ASPECT
from vino_rt.plan import BOUNDARY_ROWS, volume

USUAL_STEPS, MAX_STEPS = 50, 1000
"""Steps of a schedule to optimise for, and the most that a request may ask for."""
USUAL_STATES, MAX_STATES = 1024, 16384
"""Rows of VLM states that the connector is optimised for, and the most it takes."""
TILE_FRAMES = 5
"""Latent frames of the longest tile of the autoencoder (`vino_rt.tiling`)."""
ELEMENTS = 2**31
"""TensorRT supports only tensors with fewer elements than this."""


@dataclass(frozen=True)
class Span:
    """Range of a dynamic size, and the size within it to optimise for."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.best <= self.most:
            raise EngineError(
                f"sizes from {self.least} over {self.best} to {self.most}: must not be negative, and ascend"
            )


def exactly(size: int) -> Span:
    """The span of a single size."""
    return Span(size, size, size)


Profile = Mapping[str, Span]
"""Maps the name of each dynamic size to its range."""


def bucket_profile(bucket: Bucket, unit: int) -> Profile:
    """The range of every dynamic size of a model in a bucket. unit: pixels along the side of a patch."""
    grid, count = patch_grid(bucket.clip, unit), bucket.branches
    target = volume(grid)
    image, text = count * (bucket.references + target), count * bucket.text_tokens
    references = max(1, bucket.references * count)
    # Without references there are no reference rows M and no boundary rows R.
    # A tile is at most as large as its frame; an encoded clip has the size of the one that is generated.
    # A picture has exactly one latent frame; the last tile of a clip may be shorter than the others.
    most, height, width = min(grid[0], TILE_FRAMES), max(1, bucket.height // 8), max(1, bucket.width // 8)
    return {
        "N": exactly(target), "V": exactly(count * target), "B": exactly(count), "I": exactly(image),
        "T": exactly(text), "J": exactly(image + text), "M": Span(0, references, references),
        "S": exactly(1 + image - count * target), "K": Span(1, USUAL_STEPS, MAX_STEPS),
        "L": Span(1, USUAL_STATES, MAX_STATES), "R": Span(0, BOUNDARY_ROWS * count, MAX_STATES),
        "t": Span(1, most, most), "h": Span(1, height, height), "w": Span(1, width, width),
        "F": Span(1, 4 * most - 3, 4 * most - 3),
        "H": Span(8, 8 * height, 8 * height), "W": Span(8, 8 * width, 8 * width),
    }  # fmt: skip


def picture_profiles(area: int, unit: int) -> Iterator[Profile]:
    """Profiles for one encoded reference picture of any aspect ratio: one around the square, then longer and narrower
    ones, in landscape and portrait. area: pixels that a reference is scaled to.

    A plan allocates memory for its largest input, so no profile spans much more than four areas. Together they cover
    every canvas of `vino_rt.models.vino.prepare.letterbox_grid`: reducing the height by one unit makes a canvas smaller
    than the area, so no canvas has twice the area, and one longer than `long` is narrower than `2 * area / long`.
    """

    def on_grid(pixels: float) -> int:
        return max(unit, round(pixels / unit) * unit)

    usual = on_grid(math.sqrt(area))
    long = 2 * usual
    yield _picture(long, long, usual, usual)
    longest = math.sqrt(2 * area * min(MAX_ASPECT, area / unit**2))
    while long < longest:
        short, best = max(unit, 2 * area // long // unit * unit), on_grid(1.5 * long)
        narrow, long = min(short, on_grid(area / best)), 2 * long
        yield _picture(short, long, narrow, best)
        yield _picture(long, short, best, narrow)


def _picture(height: int, width: int, best_height: int, best_width: int) -> Profile:
    return {"F": exactly(1), "H": Span(8, best_height, height), "W": Span(8, best_width, width)}


def profiles_of(kind: Kind, buckets: Sequence[Bucket], unit: int, area: int) -> list[Profile]:
    """The profiles of a kind: one for each distinct size that the buckets give it, those of pictures if it takes
    pixels, and last that of the kind's examples. unit, area: see `ModelSettings`.

    Raises EngineError if there are no buckets.
    """
    if not buckets:
        raise EngineError(
            f"{kind.name}: backend 'tensorrt' builds for named sizes; add a [[bucket]] with frames, height, width, "
            "references and text_tokens to the recipe"
        )
    names = {dim for spec in kind.spec.inputs for dim in spec.dims if isinstance(dim, str)}
    found: list[Profile] = []
    for bucket in buckets:
        every = bucket_profile(bucket, unit)
        if unknown := sorted(names - set(every)):
            raise EngineError(f"{kind.name}: sizes {unknown} have no range; name it in {__name__}")
        profile = {name: every[name] for name in sorted(names)}
        if profile not in found:
            found.append(profile)
    if "F" in names:
        found += picture_profiles(area, unit)
    return [*found, example_profile(kind)]


def example_profile(kind: Kind) -> Profile:
    """The profile from the smallest to the largest of a kind's examples."""
    sizes = [kind.spec.check(example) for example in kind.examples()]
    ranges = {name: [found[name] for found in sizes] for name in sizes[0]}
    return {name: Span(min(found), max(found), max(found)) for name, found in sorted(ranges.items())}


def shapes(spec: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, optimal and largest shape of an input."""
    spans = [profile[dim] if isinstance(dim, str) else exactly(dim) for dim in spec.dims]
    return tuple(s.least for s in spans), tuple(s.best for s in spans), tuple(s.most for s in spans)


def check_mask(kind: Kind, rows: str | None, profiles: Sequence[Profile], advice: str) -> None:
    """Raise EngineError with `advice` if an L x L attention mask would be too large for TensorRT.

    rows: the dynamic size of the sequence (`network.attends`), None for a kind without attention.
    """
    longest = 0 if rows is None else max(profile[rows].most for profile in profiles)
    if longest**2 >= ELEMENTS:
        raise EngineError(
            f"{kind.name}: its sequences of up to {longest} rows would need a mask of {longest} x {longest} elements, "
            f"and TensorRT takes fewer than {ELEMENTS} in one tensor; {advice}"
        )
