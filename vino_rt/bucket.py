"""The shapes engines exist for: choose one for a request, or name the legal ones; and say what a request will cost.

Pure arithmetic on frames, pixels and rows. Engines with static shapes come in buckets; a recipe without any (the CPU's)
has engines of dynamic shapes, which take every size on the model's grid at exactly the length it needs. It knows no
recipe and no backend: the buckets are handed in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace

from vino_rt.errors import InputError
from vino_rt.model_settings import ModelSettings
from vino_rt.plan import BOUNDARY_ROWS, MAX_BRANCHES, PROMPT_BRANCHES, BranchShape, Grid, group, volume
from vino_rt.request import FRAME_STEP
from vino_rt.settings import Clip, check_size


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One static shape. Raises InputError for numbers that are none."""

    frames: int
    height: int
    width: int
    references: int
    """Rows of references that one branch has room for, boundary rows included."""
    text_tokens: int
    """Rows of text that one branch has room for."""
    branches: int = PROMPT_BRANCHES
    """As many as a request has: two with guidance of the prompt, three with that of the images, one without any."""

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.frames - 1) % FRAME_STEP or self.height < 1 or self.width < 1:
            raise InputError(f"bucket {self}: frames must be 1, 5, 9, ... and both sides at least one pixel")
        if self.references < 0 or self.text_tokens < 1 or not 1 <= self.branches <= MAX_BRANCHES:
            raise InputError(
                f"bucket {self}: references must be at least 0, text tokens at least 1, branches 1 to {MAX_BRANCHES}"
            )

    def __str__(self) -> str:
        return (
            f"{self.frames}x{self.width}x{self.height} ({self.branches} branches, {self.references} reference and "
            f"{self.text_tokens} text rows each)"
        )

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> "Bucket":
        """Read a `[[bucket]]` of a recipe; InputError names fields that are missing, unknown or no whole number."""
        names = {f.name: f.default is MISSING for f in fields(cls)}
        unknown = sorted(set(table) - set(names))
        missing = sorted(name for name, needed in names.items() if needed and name not in table)
        numbers = {name: value for name, value in table.items() if type(value) is int}
        if unknown or missing or len(numbers) < len(table):
            wrong = sorted(set(table) - set(numbers))
            raise InputError(
                f"bucket {dict(table)}: missing fields {missing}, unknown fields {unknown}, no whole numbers {wrong}; "
                f"the fields are {', '.join(names)}"
            )
        return cls(**numbers)

    @property
    def clip(self) -> Clip:
        """Frames, height and width."""
        return self.frames, self.height, self.width


Shape = Bucket | Clip
"""Something to build for, foresee or try: a bucket, or a clip where engines take any."""


def usual_shapes(buckets: Sequence[Bucket], defaults: ModelSettings) -> tuple[Shape, ...]:
    """What is foreseen, measured and warmed up: every bucket, or without any the model's default picture and clip.

    The most rows first: what is recorded for them leaves memory that suits the others.
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
    """What a request asks of a bucket."""

    clip: Clip
    """Frames, height and width of the output in pixels."""
    references: tuple[Grid, ...]
    """Patches of each reference."""
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
    """Rows that the two streams are padded to; None leaves them as long as they are (`plan.pack`)."""

    image_tokens: int | None
    text_tokens: int | None


def patch_grid(clip: Clip, unit: int) -> Grid:
    """Patches of a clip of (frames, height, width) pixels along time, height and width."""
    frames, height, width = clip
    return (frames - 1) // FRAME_STEP + 1, height // unit, width // unit


def check_clip(clip: Clip, buckets: Sequence[Bucket], defaults: ModelSettings) -> None:
    """Raise InputError when no engine makes this (frames, height, width), naming what can be made.

    For use before anything is computed: what the references and the prompt need is known only later, to `choose`.
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
            f"no engine makes {frames} frames of {width}x{height}; these were built: "
            f"{', '.join(f'{f} of {w}x{h}' for f, h, w in legal)}. Take one of them, or add a [[bucket]] to the recipe "
            "and build again"
        )


def choose(need: Need, buckets: Sequence[Bucket], defaults: ModelSettings) -> Lengths:
    """The lengths to pad to: those of the smallest bucket that the request fits, or none where shapes are dynamic.

    A bucket fits when its frames, height, width and branches are the request's and its rows are enough. Raises
    InputError naming the legal shapes, or by how many rows the request is too long.
    """
    check_clip(need.clip, buckets, defaults)
    if not buckets:
        return Lengths(None, None)
    target = volume(patch_grid(need.clip, defaults.unit))
    count = len(need.branches)
    same = [bucket for bucket in buckets if bucket.clip == need.clip and bucket.branches == count]
    fits = [b for b in same if b.references * count >= need.reference_rows and b.text_tokens * count >= need.text_rows]
    if not fits:
        frames, height, width = need.clip
        rooms = "; ".join(str(b) for b in (same or buckets) if b.clip == need.clip)
        raise InputError(
            f"the request needs {count} branches with {need.reference_rows} reference and {need.text_rows} text rows "
            f"in all at {frames} frames of {width}x{height}; built for that size: {rooms}. Use fewer or smaller "
            "references or a shorter prompt, or add a [[bucket]] to the recipe and build again"
        )
    best = min(fits, key=lambda b: (b.references + b.text_tokens, b.references))
    return Lengths(count * (best.references + target), count * best.text_tokens)


@dataclass(frozen=True)
class Layout:
    """One packed sequence of a request."""

    branches: tuple[BranchShape, ...]
    lengths: Lengths


def lay_out(
    need: Need, defaults: ModelSettings, buckets: Sequence[Bucket], pack_rows: int | None = None, pad_text: int = 1
) -> tuple[Layout, ...]:
    """The sequences of a request: one as long as its bucket, or where shapes are dynamic those that a recipe asks for.

    pack_rows: rows up to which branches share a sequence (`plan.group`); pad_text: text rows are padded to a multiple.
    Buckets need neither. Raises InputError as `choose` does.
    """
    chosen = choose(need, buckets, defaults)
    if buckets:
        return (Layout(need.branches, chosen),)
    groups = group(patch_grid(need.clip, defaults.unit), need.references, need.branches, pack_rows)
    rows = (sum(branch.text_tokens for branch in branches) for branches in groups)
    return tuple(
        Layout(branches, Lengths(None, -(-count // pad_text) * pad_text))
        for branches, count in zip(groups, rows, strict=True)
    )


@dataclass(frozen=True)
class Segment:
    """A run of rows of a joint sequence."""

    sequence: int
    branch: int | None
    """None for padding, which no one sees."""
    what: str
    start: int
    """Within its sequence."""
    rows: int
    time: int | None = None
    """Time position of its first row; text and padding have none."""


@dataclass(frozen=True)
class Explanation:
    """What a request comes to in rows, for people and for estimates."""

    segments: tuple[Segment, ...]
    sequences: int
    image_tokens: int
    """Rows of the image streams of all sequences, padding included."""
    text_tokens: int
    attention_pairs: int
    """(query, key) pairs of one head of one block: the sum of the squares of the branches' lengths."""


def explain(need: Need, unit: int, layouts: Sequence[Layout]) -> Explanation:
    """Lay the sequences of `lay_out` out as `plan.pack` will, without building index tables."""
    segments: list[Segment] = []
    pairs = branch = image_tokens = text_tokens = 0
    for number, layout in enumerate(layouts):
        start = 0
        for shape in layout.branches:
            first = start
            for what, rows, time in _parts(need, shape, unit):
                segments.append(Segment(number, branch, what, start, rows, time))
                start += rows
            pairs += (start - first) ** 2
            branch += 1
        part = replace(need, branches=layout.branches)
        target_rows = len(layout.branches) * volume(patch_grid(need.clip, unit))
        image = layout.lengths.image_tokens or part.reference_rows + target_rows
        text = layout.lengths.text_tokens or part.text_rows
        if padding := image + text - start:
            segments.append(Segment(number, None, "padding", start, padding))
        image_tokens, text_tokens = image_tokens + image, text_tokens + text
    return Explanation(tuple(segments), len(layouts), image_tokens, text_tokens, pairs)


def _parts(need: Need, branch: BranchShape, unit: int) -> Iterator[tuple[str, int, int | None]]:
    time = 0
    for reference in branch.references:
        grid = need.references[reference]
        yield f"reference {reference + 1}", volume(grid) + BOUNDARY_ROWS, time
        time += grid[0] + BOUNDARY_ROWS
    target = patch_grid(need.clip, unit)
    yield "target", volume(target), time
    yield "text", branch.text_tokens, None
