"""Samples of a training batch laid out as one packed sequence, by the rules that sampling uses (`vino_rt.plan`).

Every sample is a segment of its own, with its own target and time. Pure index arithmetic; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vino_rt.plan import BranchShape, Grid, Plan, Rows, boundary_rows, pack, volume

CACHED_LAYOUTS = 4096
"""Layouts of single samples kept; a batch repeats few of them."""


@dataclass(frozen=True)
class SampleShape:
    """What one sample brings to the sequence: grids of patches, and rows of text."""

    target: Grid
    references: tuple[Grid, ...]
    text_tokens: int

    @property
    def rows(self) -> int:
        """Joint rows."""
        return volume(self.target) + sum(volume(grid) + 2 for grid in self.references) + self.text_tokens


def pack_samples(shapes: Sequence[SampleShape]) -> Rows:
    """Lay samples one after another, without padding.

    The source table holds a zero row, then of all samples the references, then the boundary rows, then the targets.
    """
    assert shapes, "a batch without samples"
    plans = [_layout(shape) for shape in shapes]
    text = [shape.text_tokens for shape in shapes]
    images = [plan.image_tokens for plan in plans]
    joint_lengths = [image + rows for image, rows in zip(images, text, strict=True)]
    joint_index = _joint_index(images, text)
    starts = _starts(joint_lengths)
    targets = [plan.target_index + start for plan, start in zip(plans, starts.tolist(), strict=False)]
    return Rows(
        text_lengths=tuple(text),
        image_index=_image_index(shapes, plans),
        positions=torch.cat(
            [plan.positions[:count] for plan, count in zip(plans, images, strict=True)]
            + [torch.zeros(sum(text), 3, dtype=torch.int32)]
        ),
        joint_index=joint_index,
        stream_index=torch.argsort(joint_index),
        offsets=_offsets(joint_lengths),
        text_offsets=_offsets(text),
        text_branch=torch.arange(len(text)).repeat_interleave(torch.tensor(text)),
        target_index=torch.cat(targets),
    )


@lru_cache(maxsize=CACHED_LAYOUTS)
def _layout(shape: SampleShape) -> Plan:
    everything = tuple(range(len(shape.references)))
    return pack(shape.target, shape.references, [BranchShape(everything, shape.text_tokens)])


def _image_index(shapes: Sequence[SampleShape], plans: Sequence[Plan]) -> Tensor:
    """Each sample's rows moved from its own source table to the shared one, kind by kind."""
    references = [sum(volume(grid) for grid in shape.references) for shape in shapes]
    boundary = [boundary_rows(plan.branches) for plan in plans]
    targets = [volume(shape.target) for shape in shapes]
    at_reference, at_boundary = 1, 1 + sum(references)
    at_target = at_boundary + sum(boundary)
    moved = []
    for plan, refs, bounds, rows in zip(plans, references, boundary, targets, strict=True):
        own = plan.image_index
        shift = torch.full_like(own, at_reference - 1)
        shift[own > refs] = at_boundary - (1 + refs)
        shift[own > refs + bounds] = at_target - (1 + refs + bounds)
        moved.append(own + shift)
        at_reference, at_boundary, at_target = at_reference + refs, at_boundary + bounds, at_target + rows
    return torch.cat(moved)


def _joint_index(images: Sequence[int], text: Sequence[int]) -> Tensor:
    parts = []
    image, rows = 0, sum(images)
    for image_length, text_length in zip(images, text, strict=True):
        parts += [torch.arange(image, image + image_length), torch.arange(rows, rows + text_length)]
        image, rows = image + image_length, rows + text_length
    return torch.cat(parts)


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)


def _offsets(lengths: Sequence[int]) -> Tensor:
    """Starts of the segments and the end; an empty segment of padding behind it."""
    starts = _starts(lengths)
    return torch.cat((starts, starts[-1:]))
