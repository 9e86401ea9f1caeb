"""Many prompts with their pictures and clips through a Qwen3-VL in one pass; equals `Conditioner` sample by sample.

It knows the modules of the VLM and tokens, not what the states are for. Letters: B samples, L text rows of a sample,
Q queries, R = longest L + Q rows of a padded sample, V visual rows, H width, n patches of a frame, p its patch side.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.prefill import decoder_layers, segments
from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.prompt import ProcessedInput, boundaries, position_ids
from vino_rt.models.vino.vlm import VlmParts
from vino_rt.models.vino.vlm_config import VisionIds
from vino_rt.models.vino.vlm_vision import Visual


@dataclass(frozen=True, eq=False)
class Patches:
    """Patch rows float32 [rows, C*T*p*p] of all pictures (or clips) of a batch, and where their tokens stand."""

    rows: Tensor
    grids: tuple[Grid, ...]
    index: Tensor
    """int64 [V], rows of the flat [B * R]"""

    def to(self, device: torch.device) -> "Patches":
        """A copy on a device."""
        return Patches(self.rows.to(device), self.grids, self.index.to(device))


@dataclass(frozen=True, eq=False)
class VlmBatch:
    """Inputs of B samples, padded behind their last row: causal attention never looks there, so nothing is masked."""

    input_ids: Tensor
    """int64 [B, R], 0 where a query or nothing stands"""
    positions: Tensor
    """int64 [3, B, R]"""
    lengths: tuple[int, ...]
    """L + Q of each sample"""
    kept: Tensor
    """int64 [sum of L + Q], rows of the flat [B * R] that are no padding"""
    query_index: Tensor
    """int64 [B * Q], rows of the flat [B * R]"""
    patches: tuple[Patches, ...]
    """Pictures and clips, each when there is one."""
    starts: tuple[tuple[int, ...], ...]
    """Row of the sample's vision_start before each reference (images first, then the clip), for each sample."""
    ends: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device) -> "VlmBatch":
        """A copy on a device."""
        ids, positions, kept, queries = (
            t.to(device) for t in (self.input_ids, self.positions, self.kept, self.query_index)
        )
        patches = tuple(each.to(device) for each in self.patches)
        return VlmBatch(ids, positions, self.lengths, kept, queries, patches, self.starts, self.ends)


@dataclass(frozen=True, eq=False)
class BatchStates:
    """States [sum of L + Q, H] of all samples end to end, and the rows that bound their references."""

    states: Tensor
    lengths: tuple[int, ...]
    """L + Q of each sample"""
    starts: tuple[tuple[int, ...], ...]
    """Rows within the sample; see `VlmBatch`."""
    ends: tuple[tuple[int, ...], ...]

    @property
    def boundary(self) -> Tensor:
        """int64 [2 * references]: rows of `states`, start and end of each reference in turn, sample by sample."""
        rows, first = [], 0
        for length, starts, ends in zip(self.lengths, self.starts, self.ends, strict=True):
            rows += [first + row for pair in zip(starts, ends, strict=True) for row in pair]
            first += length
        return torch.tensor(rows, dtype=torch.int64, device=self.states.device)


def collate(inputs: Sequence[ProcessedInput], ids: VisionIds, *, queries: int = 0, merge_size: int = 2) -> VlmBatch:
    """Pad processed prompts into one batch with room for `queries` rows right behind each prompt's last token.

    Raises InputError when visual tokens and grids of a sample do not match.
    """
    assert inputs, "a batch without samples"
    lengths = tuple(len(given.input_ids) + queries for given in inputs)
    width = max(lengths)
    tokens = torch.zeros(len(inputs), width, dtype=torch.int64)
    positions = torch.zeros(3, len(inputs), width, dtype=torch.int64)
    bounds = []
    for row, given in enumerate(inputs):
        tokens[row, : lengths[row] - queries] = given.input_ids
        positions[:, row, : lengths[row]] = position_ids(
            given.input_ids, ids, given.image_grids, given.video_grids, queries, merge_size
        )
        start, end = boundaries(given.input_ids, ids, len(given.image_grids))
        bounds.append((start, end[: len(start)]))
    first = torch.arange(len(inputs)) * width
    length = torch.tensor(lengths)
    kept = torch.nonzero((torch.arange(width) < length[:, None]).flatten()).flatten()
    query_index = (first + length - queries)[:, None] + torch.arange(queries)
    flat = tokens.flatten()
    parts = (
        ([g.pixel_values for g in inputs], [g.image_grids for g in inputs], ids.image),
        ([g.pixel_values_videos for g in inputs], [g.video_grids for g in inputs], ids.video),
    )
    patches = tuple(
        Patches(torch.cat(rows), tuple(g for grids in all_grids for g in grids), torch.nonzero(flat == pad).flatten())
        for pixels, all_grids, pad in parts
        if (rows := [given for given in pixels if given is not None])
    )
    starts, ends = zip(*bounds, strict=True)
    return VlmBatch(tokens, positions, lengths, kept, query_index.flatten(), patches, starts, ends)


def batch_states(conditioner: Conditioner, batch: VlmBatch, metaquery: Tensor | None = None) -> BatchStates:
    """What `Conditioner.forward` gives for each sample, end to end; gradients reach `metaquery` [Q, H].

    Left out, it is the conditioner's own. The batch must have room for just as many queries, on the same device.
    """
    queries = conditioner.metaquery if metaquery is None else metaquery
    hidden = run_layers(conditioner.parts, batch, queries, conditioner.depth)
    return BatchStates(hidden.flatten(0, 1)[batch.kept], batch.lengths, batch.starts, batch.ends)


def run_layers(
    parts: VlmParts,
    batch: VlmBatch,
    metaquery: Tensor | None = None,
    depth: int | None = None,
    seen: Sequence[Visual] | None = None,
) -> Tensor:
    """Output of the first `depth` decoder layers (None: all), [B, R, H], deepstack included; padding holds anything.

    `seen` is what `see` gave for the batch, where the caller has it already.
    """
    with quick_attention(batch.input_ids.device):
        return _run_layers(parts, batch, metaquery, depth, see(parts, batch) if seen is None else seen)


def see(parts: VlmParts, batch: VlmBatch) -> list[Visual]:
    """The vision tower over all pictures, then over all clips of a batch."""
    with quick_attention(batch.input_ids.device):
        return [parts.visual(patches.rows, patches.grids) for patches in batch.patches]


def quick_attention(device: torch.device) -> AbstractContextManager[None]:
    """Within it attention is computed in the way that is quick to train on this device.

    On CPUs the fused kernel's backward takes about ten times as long in bfloat16 as the same sums spelled out.
    """
    spelled = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return sdpa_kernel(SDPBackend.MATH) if spelled else nullcontext()


def _run_layers(
    parts: VlmParts, batch: VlmBatch, metaquery: Tensor | None, depth: int | None, seen: Sequence[Visual]
) -> Tensor:
    rows: Tensor = parts.embed_tokens(batch.input_ids)
    shape = rows.shape
    flat = rows.flatten(0, 1)
    for patches, (out, _) in zip(batch.patches, seen, strict=True):
        flat = flat.index_copy(0, patches.index, out.to(flat.dtype))
    if metaquery is not None:
        count = len(batch.query_index)
        assert count == len(metaquery) * shape[0], f"room for {count} queries, given {len(metaquery)} a sample"
        flat = flat.index_copy(0, batch.query_index, metaquery.to(flat.dtype).repeat(shape[0], 1))
    # Each sample with its padding is a segment.
    offsets = segments([shape[1]] * shape[0])
    added = [(patches.index, deep) for patches, (_, deep) in zip(batch.patches, seen, strict=True)]
    outputs = decoder_layers(parts, flat, batch.positions.flatten(1), offsets, added)
    (last,) = deque(itertools.islice(outputs, depth), maxlen=1)
    return last.view(shape)
