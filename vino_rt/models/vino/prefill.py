"""Run prompts through a Qwen3-VL in one packed call: each prompt is embedded, then all rows run through the layers.

It knows modules and tokens, neither weights nor what the states are used for. Letters: L text rows of a prompt, Q
queries, N rows of all prompts, V visual rows, H width of a state. Source: MODEL.md section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.prompt import ProcessedInput, position_ids
from vino_rt.models.vino.vlm import VlmParts
from vino_rt.models.vino.vlm_ops import known_bounds
from vino_rt.models.vino.vlm_text import text_rotary
from vino_rt.models.vino.vlm_vision import Visual
from vino_rt.plan import MAX_BRANCHES

See = Callable[[Tensor, Sequence[Grid]], Visual]
"""Maps patch rows of pictures or clips and their grids to the output of the vision tower."""


@dataclass(frozen=True, eq=False)
class VlmStates:
    """States [L + Q, H] in the VLM's dtype, and the start and end row of each reference: images, then the clip."""

    states: Tensor
    vision_start: tuple[int, ...]
    vision_end: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Embedded:
    """One prompt as it enters the decoder layers, and what deepstack adds after the first of them."""

    rows: Tensor
    """[L + Q, H]"""
    positions: Tensor
    """Positions (t, h, w), int64 [3, L + Q]."""
    visual_index: Tensor
    """int64 [V]: the visual rows among `rows`."""
    visual_out: tuple[Tensor, ...]
    """Output of each run of the vision tower, [V of that run, H] each."""
    deepstack: tuple[Tensor, ...]
    """[V, H] for each of the first decoder layers; empty for a prompt without pictures."""


def embed(parts: VlmParts, given: ProcessedInput, queries: Tensor, see: See) -> Embedded:
    """Embed a prompt: token embeddings with the visual rows filled in, and the queries [Q, H] appended.

    `see` runs the vision tower, first on all pictures, then on the clip. Raises InputError if the prompt's pad tokens
    and the grids do not match.
    """
    ids, vision = given.input_ids.cpu(), parts.config.ids
    merge = parts.config.vision.spatial_merge_size
    positions = position_ids(ids, vision, given.image_grids, given.video_grids, len(queries), merge)
    device = queries.device
    rows, indices, outs, deeps = parts.embed_tokens(ids.to(device)), [], [], []
    for pixels, grids, pad in (
        (given.pixel_values, given.image_grids, vision.image),
        (given.pixel_values_videos, given.video_grids, vision.video),
    ):
        if pixels is None:
            continue
        indices.append(torch.nonzero(ids == pad).flatten().to(device))
        out, deep = see(pixels, grids)
        outs.append(out)
        deeps.append(deep)
        rows = rows.index_copy(0, indices[-1], out.to(rows.dtype))
    index = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64, device=device)
    deepstack = tuple(torch.cat(layer) for layer in zip(*deeps, strict=True))
    return Embedded(torch.cat((rows, queries)), positions.to(device), index, tuple(outs), deepstack)


def segments(lengths: Sequence[int]) -> Tensor:
    """Offsets int32 of prompts packed without padding, as `causal_attention` takes them.

    Filled up with empty segments to MAX_BRANCHES prompts, which is what the engines expect.
    """
    ends = torch.tensor([0, *lengths, *([0] * (MAX_BRANCHES - len(lengths)))]).cumsum(0)
    return torch.cat((ends, ends[-1:])).int()


def run_layers(parts: VlmParts, prompts: Sequence[Embedded]) -> Iterator[Tensor]:
    """Yield the packed rows [N, H] of all prompts, then the output of each decoder layer, deepstack included."""
    lengths = [len(prompt.rows) for prompt in prompts]
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    seen = [(prompt, start) for prompt, start in zip(prompts, starts, strict=False) if prompt.deepstack]
    hidden = torch.cat([prompt.rows for prompt in prompts])
    offsets = segments(lengths)
    positions = torch.cat([prompt.positions for prompt in prompts], dim=1)
    index = torch.cat([prompt.visual_index + start for prompt, start in seen]) if seen else positions.new_empty(0)
    deepstack = [torch.cat(layer) for layer in zip(*(prompt.deepstack for prompt, _ in seen), strict=True)]
    yield hidden
    yield from decoder_layers(parts, hidden, positions, offsets, [(index, deepstack)])


def decoder_layers(
    parts: VlmParts, rows: Tensor, positions: Tensor, offsets: Tensor, added: Sequence[tuple[Tensor, Sequence[Tensor]]]
) -> Iterator[Tensor]:
    """Yield the output [N, H] of each layer for `rows` [N, H] at `positions` int64 [3, N].

    offsets: from `segments`, on the CPU. added: deepstack, as pairs of row indices int64 [V] and, for each of the first
    layers, the values [V, H] to add to these rows.
    """
    cos, sin = text_rotary(positions, parts.config.text, bf16=parts.rotary_bf16)
    bounds, offsets = offsets.tolist(), offsets.to(rows.device)
    for number, layer in enumerate(parts.layers):
        # Around each call, not around the loop: between yields the bounds must not stay set for the caller.
        with known_bounds(bounds):
            rows = layer(rows, cos, sin, offsets)
        for index, deep in added:
            if number < len(deep):
                rows = rows.index_add(0, index, deep[number].to(rows.dtype))
        yield rows
