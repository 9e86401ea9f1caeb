"""Buckets, the static shapes that engines are built for: choose the one for a request, or name the legal ones.

Pure arithmetic on frames, pixels and rows. A recipe lists buckets where its engines have static shapes. A recipe
without buckets (the CPU's) has engines with dynamic shapes, which run every size on the model's grid without padding.
This file knows no recipe and no backend: the buckets are passed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields

from vino_rt.errors import InputError
from vino_rt.model_settings import ModelSettings
from vino_rt.plan import BOUNDARY_ROWS, MAX_BRANCHES, PROMPT_BRANCHES, BranchShape, Grid, group, volume
from vino_rt.request import FRAME_STEP
from vino_rt.settings import Clip, check_size


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One static shape. Raises InputError for numbers that no engine can be built for."""

    frames: int
    height: int
    width: int
    references: int
    """Most reference rows per branch, boundary rows included."""
    text_tokens: int
    """Most text rows per branch."""
    branches: int = PROMPT_BRANCHES
    """Guidance branches: two with guidance of the prompt, three with that of the images, one without guidance."""

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.frames - 1) % FRAME_STEP or self.height < 1 or self.width < 1:
            raise InputError(f"bucket {self}: frames must be 1, 5, 9, ... and both sides at least one pixel")
        if self.references < 0 or self.text_tokens < 1 or not 1 <= self.branches <= MAX_BRANCHES:
            raise InputError(
                f"bucket {self}: references must be at least 0, text tokens at least 1, branches 1 to {MAX_BRANCHES}"
            )

    def __str__(self) -> str:
        return (
            f"{self.frames} x {self.width}x{self.height} ({branches_of(self.branches)}, {self.references} reference "
            f"and {self.text_tokens} text rows each)"
        )

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> "Bucket":
        """Read a `[[bucket]]` of a recipe; InputError names fields that are missing, unknown or not whole numbers."""
        names = {f.name: f.default is MISSING for f in fields(cls)}
        numbers = {name: value for name, value in table.items() if type(value) is int}
        problems = {
            "missing fields": sorted(name for name, needed in names.items() if needed and name not in table),
            "unknown fields": sorted(set(table) - set(names)),
            "not whole numbers": sorted(set(table) - set(numbers)),
        }
        if any(problems.values()):
            told = "; ".join(f"{problem}: {', '.join(wrong)}" for problem, wrong in problems.items() if wrong)
            given = ", ".join(f"{name} = {value!r}" for name, value in table.items())
            raise InputError(f"bucket with {given or 'no fields'}: {told}; the fields are {', '.join(names)}")
        return cls(**numbers)

    @property
    def clip(self) -> Clip:
        """Frames, height and width of the output in pixels."""
        return self.frames, self.height, self.width


Shape = Bucket | Clip
"""What to warm up, measure or predict memory for: a bucket, or any clip where shapes are dynamic."""


def usual_shapes(buckets: Sequence[Bucket], defaults: ModelSettings) -> tuple[Shape, ...]:
    """Shapes to predict, measure and warm up: every bucket or, without buckets, the model's default picture and clip.

    Sorted by rows, most first: recorded steps share one buffer, which then never has to grow.
    """

    def rows(bucket: Bucket) -> int:
        target = volume(patch_grid(bucket.clip, defaults.unit))
        return bucket.branches * (target + bucket.references + bucket.text_tokens)

    if buckets:
        return tuple(sorted(buckets, key=rows, reverse=True))
    width, height = defaults.default_size
    return tuple((frames, height, width) for frames in sorted({1, defaults.default_frames}, reverse=True))


@dataclass(frozen=True)
class Need:
    """The size of a request: what a bucket must hold."""

    clip: Clip
    """Frames, height and width of the output in pixels."""
    references: tuple[Grid, ...]
    """Patch grid of each reference."""
    branches: tuple[BranchShape, ...]

    @property
    def reference_rows(self) -> int:
        """Rows of references and their boundaries in all branches together."""
        return sum(volume(self.references[r]) + BOUNDARY_ROWS for b in self.branches for r in b.references)

    @property
    def text_rows(self) -> int:
        """Rows of text in all branches together."""
        return sum(b.text_tokens for b in self.branches)


@dataclass(frozen=True)
class Lengths:
    """Rows that each stream is padded to; None: no padding (`plan.pack`)."""

    image_tokens: int | None
    text_tokens: int | None


ADD_BUCKET = "add a [[bucket]] to the recipe and run vino-rt build"


def patch_grid(clip: Clip, unit: int) -> Grid:
    """Patch grid of a clip of (frames, height, width) pixels; `unit`: pixels along the side of a patch."""
    frames, height, width = clip
    return (frames - 1) // FRAME_STEP + 1, height // unit, width // unit


def check_clip(clip: Clip, buckets: Sequence[Bucket], defaults: ModelSettings) -> None:
    """Raise InputError when no engine makes this (frames, height, width), naming what can be made.

    Called before anything is computed; `choose` checks the rows of references and prompt once they are known.
    """
    frames, height, width = clip
    if not buckets:
        check_size(width, height, defaults)
        if (frames - 1) % FRAME_STEP or not 1 <= frames <= defaults.max_frames:
            raise InputError(f"frames is {frames}; this model makes 1, 5, 9, ... up to {defaults.max_frames}")
        return
    legal = sorted({bucket.clip for bucket in buckets})
    if clip not in legal:
        raise InputError(
            f"the recipe has no bucket for {frames} frames of {width}x{height}; its buckets are for "
            f"{', '.join(f'{f} of {w}x{h}' for f, h, w in legal)}. Choose one of these, or {ADD_BUCKET}"
        )


def choose(need: Need, buckets: Sequence[Bucket], defaults: ModelSettings) -> Lengths:
    """Stream lengths of the bucket that `pick` chooses; no padding where shapes are dynamic. Raises as `pick` does."""
    best = pick(need, buckets, defaults)
    if best is None:
        return Lengths(None, None)
    count, target = len(need.branches), volume(patch_grid(need.clip, defaults.unit))
    return Lengths(count * (best.references + target), count * best.text_tokens)


def pick(need: Need, buckets: Sequence[Bucket], defaults: ModelSettings) -> Bucket | None:
    """The smallest bucket that holds a request; None where shapes are dynamic.

    A bucket holds a request if frames, height, width and branches are equal and its rows suffice. Raises InputError
    naming the legal shapes, the legal numbers of branches, or the rows needed and the rows there are.
    """
    check_clip(need.clip, buckets, defaults)
    if not buckets:
        return None
    count = len(need.branches)
    same = [bucket for bucket in buckets if bucket.clip == need.clip]
    if count not in {bucket.branches for bucket in same}:
        raise _other_branches(need, same)
    roomy = [bucket for bucket in same if bucket.branches == count]
    fits = [b for b in roomy if b.references * count >= need.reference_rows and b.text_tokens * count >= need.text_rows]
    if not fits:
        raise InputError(
            f"the request needs {need.reference_rows} reference and {need.text_rows} text rows in its {count} branches "
            f"together; the recipe's buckets for these are {'; '.join(map(str, roomy))}. Use fewer or smaller "
            f"references or a shorter prompt, or {ADD_BUCKET}"
        )
    return min(fits, key=room)


def room(bucket: Bucket) -> tuple[int, int]:
    """Sort key of buckets with the same size and branches: smaller ones first."""
    return bucket.references + bucket.text_tokens, bucket.references


def _other_branches(need: Need, buckets: Sequence[Bucket]) -> InputError:
    """The error for a request whose guidance needs a number of branches that no bucket of its size has."""
    count, legal = len(need.branches), sorted({bucket.branches for bucket in buckets})
    said = {
        1: "set --guidance to 1",
        PROMPT_BRANCHES: "set --guidance above 1 and leave --image-guidance at 1",
        MAX_BRANCHES: "set --guidance and --image-guidance above 1, with a reference",
    }
    frames, height, width = need.clip
    return InputError(
        f"with its guidance the request has {branches_of(count)}; the recipe's buckets for {frames} frames of "
        f"{width}x{height} have {' or '.join(branches_of(number) for number in legal)}: "
        f"{', or '.join(f'for {branches_of(number)} {said[number]}' for number in legal)}; or {ADD_BUCKET}"
    )


def branches_of(count: int) -> str:
    """The number of branches as messages write it, such as `2 branches`."""
    return f"{count} branch{'es' if count > 1 else ''}"


@dataclass(frozen=True)
class Layout:
    """One packed sequence of a request: its branches, and the lengths its streams are padded to."""

    branches: tuple[BranchShape, ...]
    lengths: Lengths


def lay_out(
    need: Need,
    defaults: ModelSettings,
    buckets: Sequence[Bucket],
    pack_rows: int | None = None,
    pad_text: Sequence[int] = (),
) -> tuple[Layout, ...]:
    """The packed sequences of a request: one, padded to its bucket, or where shapes are dynamic as many as needed.

    pack_rows: branches share a sequence of at most this many rows (`plan.group`). pad_text: legal numbers of text rows
    per branch (`padded_text`). Both apply to dynamic shapes only. Raises InputError as `choose` does.
    """
    chosen = choose(need, buckets, defaults)
    if buckets:
        return (Layout(need.branches, chosen),)
    groups = group(patch_grid(need.clip, defaults.unit), need.references, need.branches, pack_rows)
    rows = (sum(branch.text_tokens for branch in branches) for branches in groups)
    return tuple(
        Layout(branches, Lengths(None, padded_text(count, len(branches), pad_text)))
        for branches, count in zip(groups, rows, strict=True)
    )


def padded_text(rows: int, branches: int, lengths: Sequence[int]) -> int:
    """Number of text rows that a sequence of `rows` text rows in `branches` branches is padded to.

    lengths: legal rows per branch. The smallest that suffices is taken; beyond the largest, a multiple of it. Without
    any, nothing is padded.
    """
    if not lengths:
        return rows
    fitting = [branches * length for length in sorted(lengths) if branches * length >= rows]
    largest = branches * max(lengths)
    return fitting[0] if fitting else -(-rows // largest) * largest
