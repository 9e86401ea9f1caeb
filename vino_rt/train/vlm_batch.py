"""Many prompts with their pictures and clips through a Qwen3-VL in one pass; equals `Conditioner` sample by sample.

It knows the modules of the VLM and tokens, not what the states are for. Letters: B samples, L text rows of a sample,
Q queries, R = longest L + Q rows of a padded sample, V visual rows, H width, n patches of a frame, p its patch side.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vino_rt.models.vino.conditioner import Conditioner, VisionRotary, text_rotary
from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.prompt import ProcessedInput, VisionIds, boundaries, position_ids

Visual = tuple[Tensor, list[Tensor]]
"""Visual rows [V, H], and what deepstack adds to them after each of the first decoder layers, [V, H] each."""


@dataclass(frozen=True, eq=False)
class VlmParts:
    """The modules and numbers of a VLM that a batch runs through."""

    embed_tokens: nn.Module
    layers: nn.ModuleList
    visual: Any
    """transformers' vision tower; its rotary module takes positions [V, 2]."""
    rope: dict[str, Any]
    head_dim: int
    rotary_bf16: bool = False

    @classmethod
    def of(cls, conditioner: Conditioner) -> Self:
        """The parts of a conditioner."""
        c = conditioner
        return cls(c.embed_tokens, c.layers, c.visual, c.rope, c.head_dim, c.rotary_bf16)

    @classmethod
    def of_whole(cls, model: Any) -> Self:
        """The parts of a `Qwen3VLForConditionalGeneration`, whose own rotary tables need not exist."""
        text, vision = model.config.text_config, model.config.vision_config
        inner, visual = model.model.language_model, model.model.visual
        visual.rotary_pos_emb = VisionRotary(
            vision.hidden_size // vision.num_heads, vision.rope_parameters["rope_theta"], bf16=False
        )
        return cls(inner.embed_tokens, inner.layers, visual, dict(text.rope_parameters), int(text.head_dim))


@dataclass(frozen=True, eq=False)
class Patches:
    """Patch rows float32 [rows, C*T*p*p] of all pictures (or clips) of a batch, and where their tokens stand."""

    rows: Tensor
    grids: tuple[Grid, ...]
    index: Tensor
    """int64 [V], rows of the flat [B * R]"""

    def to(self, device: torch.device) -> "Patches":
        """The same on a device."""
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
        """The same on a device."""
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
    hidden = run_layers(VlmParts.of(conditioner), batch, queries, conditioner.depth)
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
    """The vision tower over all pictures, then over all clips of a batch; see `look`."""
    with quick_attention(batch.input_ids.device):
        return [look(parts.visual, patches.rows, patches.grids) for patches in batch.patches]


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
    hidden = flat.view(shape)
    cos, sin = text_rotary(batch.positions.flatten(1), parts.head_dim, parts.rope, bf16=parts.rotary_bf16)
    rotary = (cos.to(hidden.dtype).view(*shape[:2], -1), sin.to(hidden.dtype).view(*shape[:2], -1))
    for number, layer in enumerate(itertools.islice(parts.layers, depth)):
        hidden = layer(hidden, position_embeddings=rotary)
        for patches, (_, deep) in zip(batch.patches, seen, strict=True):
            if number < len(deep):
                added = hidden.flatten(0, 1).index_add(0, patches.index, deep[number].to(hidden.dtype))
                hidden = added.view(shape)
    return hidden


def look(visual: Any, rows: Tensor, grids: Sequence[Grid]) -> Visual:
    """Vision tower over many pictures: patch rows -> visual rows [V, H] and what deepstack adds, [V, H] for each layer.

    The tower's own forward calls attention once a frame; here frames of one size share a call, because they see
    nothing of each other anyway.
    """
    sizes = [size[1:] for size in grids for _ in range(size[0])]
    if len(set(sizes)) == 1:
        outs = _tower(visual, rows.view(len(sizes), -1, rows.shape[1]), sizes[0])
        return outs[0], outs[1:]
    frames = torch.tensor_split(rows, torch.tensor([height * width for height, width in sizes]).cumsum(0)[:-1])
    found: dict[int, tuple[Tensor, ...]] = {}
    for size in dict.fromkeys(sizes):
        members = [number for number, other in enumerate(sizes) if other == size]
        outs = _tower(visual, torch.stack([frames[number] for number in members]), size)
        found.update(zip(members, zip(*(out.chunk(len(members)) for out in outs), strict=True), strict=True))
    first, *rest = (torch.cat(layer) for layer in zip(*(found[number] for number in range(len(sizes))), strict=True))
    return first, rest


def _tower(visual: Any, frames: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Frames [N, n, C*T*p*p] of one size -> visual rows, then those of deepstack, each [N * n / merge, H]."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    grid = torch.tensor([[1, *size]], device=frames.device)
    merge = int(visual.spatial_merge_size)
    index, weight = get_vision_interpolation_indices_and_weights(
        grid, visual.num_grid_per_side, visual.interpolation_mode, visual.interpolation_align_corners, merge
    )
    embed = visual.patch_embed.proj
    # The kernel of this convolution is as large as its step, which makes it a matrix product.
    hidden = F.linear(frames.to(embed.weight.dtype), embed.weight.flatten(1), embed.bias)
    hidden = hidden + (visual.pos_embed(index) * weight[:, :, None]).sum(1).to(hidden.dtype)
    rotary = visual.rotary_pos_emb(hidden, get_vision_position_ids(grid, merge))
    deepstack = []
    for number, block in enumerate(visual.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), rotary)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            deepstack.append(merger(hidden.flatten(0, 1)))
    return [visual.merger(hidden.flatten(0, 1)), *deepstack]


def _attend(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of a vision block within each frame of [N, n, C]."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    projected: Tensor = attention.qkv(hidden)
    query, key, value = projected.view(*hidden.shape[:2], 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out
