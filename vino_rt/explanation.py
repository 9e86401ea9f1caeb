"""The rows of a request, segment by segment, and why a bucket was chosen: for `inspect --plan`. Pure arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vino_rt.bucket import Bucket, Layout, Need, branches_of, patch_grid, room
from vino_rt.plan import BOUNDARY_ROWS, BranchShape, volume


def why(need: Need, chosen: Bucket, buckets: Sequence[Bucket]) -> str:
    """One sentence on why `bucket.pick` chose this bucket."""
    same = [b for b in buckets if b.clip == chosen.clip and b.branches == chosen.branches]
    smaller = sum(room(bucket) < room(chosen) for bucket in same)
    count = len(need.branches)
    return (
        f"of {len(same)} for this size and {branches_of(count)} the smallest with room for {need.reference_rows} "
        f"reference and {need.text_rows} text rows in all"
        + (f"; {smaller} smaller {'ones have' if smaller > 1 else 'one has'} not" if smaller else "")
    )


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a joint sequence that belong together."""

    sequence: int
    branch: int | None
    """None for padding, which no row attends to."""
    what: str
    """`reference 1`, `target`, `text` or `padding`."""
    start: int
    """First row within the sequence."""
    rows: int
    time: int | None = None
    """Position in time of the first row; None for text and padding."""


@dataclass(frozen=True)
class Explanation:
    """The rows of a request's packed sequences and what attention over them costs."""

    segments: tuple[Segment, ...]
    sequences: int
    image_tokens: int
    """Rows of the image streams of all sequences, padding included."""
    text_tokens: int
    """Rows of the text streams of all sequences, padding included."""
    attention_pairs: int
    """(query, key) pairs of one head of one block: the sum of the squares of the branches' lengths."""

    def rows(self, sequence: int, what: str = "") -> int:
        """Rows of a sequence, padding included, or those whose segment begins with `what`."""
        return sum(s.rows for s in self.segments if s.sequence == sequence and s.what.startswith(what))


def explain(need: Need, unit: int, layouts: Sequence[Layout]) -> Explanation:
    """Describe the sequences of `bucket.lay_out` as `plan.pack` will pack them, without building index tensors."""
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
