"""The packed sequence of a request: what each row holds, its position in time and space, and which rows attend to it.

Pure index arithmetic on the CPU; knows no model, no weights and no backend. Shared by sampling and training.
Source: MODEL.md section 4.

Image stream of a branch: for each reference a start row, its latent patches, an end row; then the target's patches.
Text stream of a branch: the connector's rows. The joint sequence is branch by branch, image rows then text rows.
Padding to the bucket's length sits at the end of each stream; in the joint sequence it is the last segment, so that no
other row attends to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from vino_rt.errors import InputError

MAX_BRANCHES = 3
PROMPT_BRANCHES = 2
"""Branches of a request with text guidance: one for the prompt, one for the negative prompt."""
BOUNDARY_ROWS = 2
"""Rows added around each reference: one for its start, one for its end (MODEL.md section 4)."""
Grid = tuple[int, int, int]
"""Frames, rows and columns of patches."""


def volume(grid: Grid) -> int:
    """Patches in a grid."""
    return grid[0] * grid[1] * grid[2]


@dataclass(frozen=True)
class BranchShape:
    """Size of one guidance branch: indices of its references among the request's, and its number of text rows."""

    references: tuple[int, ...]
    text_tokens: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Index tensors of one packed sequence; rows I of the image stream, T of the text stream, J = I + T joint.

    A segment is a guidance branch of a request, or a sample of a training batch. `image_index` points into a source
    table made of, in this order: one zero row; the patches of every reference; a start and an end row for each
    (segment, reference); the patches of the targets (a request has one, which every branch reads).
    """

    text_lengths: tuple[int, ...]
    """Text rows of each segment, padding excluded."""
    image_index: Tensor
    """int64 [I]: row of the source table that each image row is a copy of."""
    positions: Tensor
    """int32 [I + T, 3]: (t, h, w) of each stream row, image stream first; text and padding sit at 0: no rotation."""
    joint_index: Tensor
    """int64 [J]: where each joint row lies in the concatenation of image and text stream."""
    stream_index: Tensor
    """int64 [J]: the inverse of `joint_index`."""
    offsets: Tensor
    """int32 [segments + 2]: bounds of the joint segments; unused ones are empty, the last one is padding."""
    text_offsets: Tensor
    """int32 [segments + 2]: the same for the text stream alone."""
    text_branch: Tensor
    """int64 [T]: segment of each text row; 0 for padding."""
    target_index: Tensor
    """int64 [target rows of all segments]: joint rows of the targets, segment by segment."""

    @property
    def image_tokens(self) -> int:
        """Rows I of the image stream, padding included."""
        return self.image_index.shape[0]

    @property
    def text_tokens(self) -> int:
        """Rows T of the text stream, padding included."""
        return self.text_branch.shape[0]

    def to(self, device: torch.device) -> Self:
        """A copy with its tensors on a device."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Plan(Rows):
    """The packed sequence of one request; its offsets always hold MAX_BRANCHES segments."""

    target: Grid
    references: tuple[Grid, ...]
    branches: tuple[BranchShape, ...]


def pack(
    target: Grid,
    references: Sequence[Grid],
    branches: Sequence[BranchShape],
    *,
    image_tokens: int | None = None,
    text_tokens: int | None = None,
) -> Plan:
    """Pack all branches into one sequence.

    target, references: patch grids. image_tokens, text_tokens: lengths to pad the streams to; None: no padding. Raises
    InputError when the rows exceed these lengths.
    """
    assert 1 <= len(branches) <= MAX_BRANCHES
    image_rows, image_positions = zip(
        *(_image_rows(target, references, branches, b) for b in range(len(branches))), strict=True
    )
    image_lengths = [len(rows) for rows in image_rows]
    text_lengths = [b.text_tokens for b in branches]
    image_total = _padded("image", sum(image_lengths), image_tokens)
    text_total = _padded("text", sum(text_lengths), text_tokens)
    text_branch = torch.arange(len(branches)).repeat_interleave(torch.tensor(text_lengths))
    joint = _joint_order(image_lengths, text_lengths, image_total, text_total)
    offsets = _offsets([i + t for i, t in zip(image_lengths, text_lengths, strict=True)], image_total + text_total)
    ends = [start + length for start, length in zip(offsets.tolist(), image_lengths, strict=False)]
    return Plan(
        target=target,
        references=tuple(references),
        branches=tuple(branches),
        text_lengths=tuple(text_lengths),
        image_index=_with_padding(torch.cat(image_rows), image_total),
        positions=_with_padding(torch.cat(image_positions), image_total + text_total),
        joint_index=joint,
        stream_index=torch.argsort(joint),
        offsets=offsets,
        text_offsets=_offsets(text_lengths, text_total),
        text_branch=_with_padding(text_branch, text_total),
        target_index=torch.cat([torch.arange(end - volume(target), end) for end in ends]),
    )


def group(
    target: Grid, references: Sequence[Grid], branches: Sequence[BranchShape], limit: int | None
) -> tuple[tuple[BranchShape, ...], ...]:
    """Group consecutive branches into sequences of at most `limit` joint rows (None: one sequence).

    A branch that is longer by itself gets its own sequence. Branches never attend to each other, so grouping affects
    speed alone.
    """
    groups: list[list[BranchShape]] = []
    room = 0
    for branch in branches:
        rows = (
            volume(target) + branch.text_tokens + sum(volume(references[r]) + BOUNDARY_ROWS for r in branch.references)
        )
        if groups and (limit is None or rows <= room):
            groups[-1].append(branch)
        else:
            groups.append([branch])
            room = limit or 0
        room -= rows
    return tuple(tuple(branches) for branches in groups)


def boundary_rows(branches: Sequence[BranchShape]) -> int:
    """Boundary rows in the source table: a start and an end row for every reference of every branch."""
    return BOUNDARY_ROWS * sum(len(b.references) for b in branches)


def grid_positions(grid: Grid, start: int) -> Tensor:
    """Positions (t, h, w) of the patches of a grid whose first frame is at time `start`: int32 [t*h*w, 3]."""
    axes = torch.arange(start, start + grid[0]), torch.arange(grid[1]), torch.arange(grid[2])
    return torch.cartesian_prod(*axes).reshape(-1, 3).to(torch.int32)


def _image_rows(
    target: Grid, references: Sequence[Grid], branches: Sequence[BranchShape], branch: int
) -> tuple[Tensor, Tensor]:
    """Source rows int64 [rows] and positions int32 [rows, 3] of one branch's image stream; t runs on from reference
    to reference (MODEL.md section 4).
    """
    starts = [1]
    for grid in references:
        starts.append(starts[-1] + volume(grid))
    boundary = starts[-1] + boundary_rows(branches[:branch])
    target_start = starts[-1] + boundary_rows(branches)
    rows: list[Tensor] = []
    positions: list[Tensor] = []
    t = 0
    for i, r in enumerate(branches[branch].references):
        grid = references[r]
        start = boundary + BOUNDARY_ROWS * i
        start_row, end_row = torch.tensor([start]), torch.tensor([start + 1])
        rows += [start_row, torch.arange(starts[r], starts[r] + volume(grid)), end_row]
        positions += [
            torch.tensor([[t, 0, 0]], dtype=torch.int32),
            grid_positions(grid, t + 1),
            torch.tensor([[t + 1 + grid[0], 0, 0]], dtype=torch.int32),
        ]
        t += grid[0] + BOUNDARY_ROWS
    rows.append(torch.arange(target_start, target_start + volume(target)))
    positions.append(grid_positions(target, t))
    return torch.cat(rows), torch.cat(positions)


def _padded(stream: str, needed: int, length: int | None) -> int:
    if length is None:
        return needed
    if needed > length:
        raise InputError(f"the request needs {needed} rows of {stream}, its bucket has room for {length}")
    return length


def _with_padding(rows: Tensor, length: int) -> Tensor:
    """Append zero rows up to `length`."""
    return torch.cat((rows, rows.new_zeros(length - rows.shape[0], *rows.shape[1:])))


def _offsets(lengths: Sequence[int], total: int) -> Tensor:
    padded = list(lengths) + [0] * (MAX_BRANCHES - len(lengths))
    ends = torch.tensor(padded, dtype=torch.int32).cumsum(0).to(torch.int32)
    return torch.cat((torch.zeros(1, dtype=torch.int32), ends, torch.tensor([total], dtype=torch.int32)))


def _joint_order(
    image_lengths: Sequence[int], text_lengths: Sequence[int], image_total: int, text_total: int
) -> Tensor:
    parts: list[Tensor] = []
    image, text = 0, image_total
    for image_length, text_length in zip(image_lengths, text_lengths, strict=True):
        parts += [torch.arange(image, image + image_length), torch.arange(text, text + text_length)]
        image, text = image + image_length, text + text_length
    parts += [torch.arange(image, image_total), torch.arange(text, image_total + text_total)]
    return torch.cat(parts)
