"""For which sizes a plan is built: one optimisation profile per bucket, from the rows that a bucket comes to, and one
for the few rows that `vino_export.verify` measures a plan on.

What a step computes has one size in a bucket (`vino_rt.bucket.choose` pads to it). What runs once per request, such as
the connector, takes a range. Sizes have the names of `vino_rt.models.vino.kinds` and `model_kinds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vino_rt.backends.base import Kind, TensorSpec
from vino_rt.bucket import BOUNDARY, Bucket, patch_grid
from vino_rt.errors import EngineError
from vino_rt.plan import volume
from vino_rt.request import MAX_STEPS

USUAL_STEPS = 50
USUAL_STATES, MAX_STATES = 1024, 16384
"""Rows that the connector takes of a prompt with its references."""
TILE_FRAMES = 5
"""Latent frames of the longest tile of the autoencoder (`vino_rt.tiling`)."""


@dataclass(frozen=True)
class Span:
    """A size that may lie between two others and is fast at a third."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.best <= self.most:
            raise EngineError(
                f"sizes from {self.least} over {self.best} to {self.most}: must not be negative, and ascend"
            )


def exactly(size: int) -> Span:
    """One size and no other."""
    return Span(size, size, size)


Profile = Mapping[str, Span]
"""By a dynamic size's name, what it may be."""


def bucket_profile(bucket: Bucket, unit: int) -> Profile:
    """Every dynamic size of a model in a bucket. unit: pixels along the side of a patch."""
    target, count = volume(patch_grid(bucket.clip, unit)), bucket.branches
    image, text = count * (bucket.references + target), count * bucket.text_tokens
    references = max(1, bucket.references * count)
    static = 1 + references + BOUNDARY * count
    # A request may be without references: then there are none of their rows, M, and of their boundaries, R.
    # References may lie across; a tile is no larger than its frame, and in pixels eight times as large.
    side = max(1, max(bucket.height, bucket.width) // 8)
    height, width = max(1, bucket.height // 8), max(1, bucket.width // 8)
    return {
        "N": exactly(target), "V": exactly(count * target), "B": exactly(count), "I": exactly(image),
        "T": exactly(text), "J": exactly(image + text), "M": Span(0, references, references),
        "S": Span(1, static, static), "K": Span(1, USUAL_STEPS, MAX_STEPS),
        "L": Span(1, USUAL_STATES, MAX_STATES), "R": Span(0, BOUNDARY * count, MAX_STATES),
        "t": Span(1, TILE_FRAMES, TILE_FRAMES), "h": Span(1, height, side), "w": Span(1, width, side),
        "F": Span(1, 4 * TILE_FRAMES - 3, 4 * TILE_FRAMES - 3), "H": Span(8, 8 * height, 8 * side),
        "W": Span(8, 8 * width, 8 * side),
    }  # fmt: skip


def profiles_of(kind: Kind, buckets: Sequence[Bucket], unit: int) -> list[Profile]:
    """A kind's profiles, one for each bucket whose sizes differ for it, then that of the kind's examples.

    Raises EngineError where there are no buckets.
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
    return [*found, example_profile(kind)]


def example_profile(kind: Kind) -> Profile:
    """From the smallest to the largest of a kind's examples."""
    sizes = [kind.spec.check(example) for example in kind.examples()]
    ranges = {name: [found[name] for found in sizes] for name in sizes[0]}
    return {name: Span(min(found), max(found), max(found)) for name, found in sorted(ranges.items())}


def shapes(spec: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, best and largest shape of an input."""
    spans = [profile[dim] if isinstance(dim, str) else exactly(dim) for dim in spec.dims]
    return tuple(s.least for s in spans), tuple(s.best for s in spans), tuple(s.most for s in spans)
