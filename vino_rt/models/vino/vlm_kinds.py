"""The engine kinds of the vision-language model: a layer of its text tower and a block of its vision tower.

PyTorch runs the embedding of tokens and patches and the mergers, which are cheap and run once per request. Dynamic
sizes: N rows of all prompts, F frames of one size with n patches each.
"""

import torch
from torch import Tensor

from vino_rt.backends.base import Kind
from vino_rt.models.vino.kinds import SEGMENTS, WIDE, engine_spec
from vino_rt.models.vino.prefill import segments
from vino_rt.models.vino.vlm_config import TextConfig, VisionConfig, VlmConfig
from vino_rt.models.vino.vlm_text import DecoderLayer, text_rotary
from vino_rt.models.vino.vlm_vision import VisionBlock, block_order, vision_rotary

LAYER, BLOCK = "vlm_layer", "vlm_vision_block"
PROMPTS = ((23, 37, 11), (19,), (7, 29))
"""Lengths of the packed prompts that a layer is verified on; the first set is also traced."""
FRAMES = ((3, (4, 6)), (1, (2, 8)), (5, (2, 2)))
"""Number of frames, and rows and columns of patches of each, that a block is verified on."""


def vlm_kinds(config: VlmConfig) -> dict[str, Kind]:
    """Both kinds by name; the last text layer, whose output nothing reads, has no engine."""
    return {kind.name: kind for kind in (_block_kind(config.vision), _layer_kind(config.text))}


def _layer_kind(config: TextConfig) -> Kind:
    h, rotation = config.hidden_size, ("N", config.head_dim // 2)
    spec = engine_spec(
        LAYER,
        {"rows": ("N", h), "cos": rotation, "sin": rotation, "offsets": (SEGMENTS,)},
        {"rows_out": ("N", h)},
    )

    def examples() -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [layer_example(config, lengths, generator) for lengths in PROMPTS]

    layers = config.num_hidden_layers - 1
    prefix = "model.language_model.layers.{layer}."
    return Kind(spec, "vlm", prefix, layers, lambda: DecoderLayer(config), examples, wide=WIDE)


def layer_example(config: TextConfig, lengths: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Random inputs of a layer for prompts of these lengths, whose positions are partly those of a picture."""
    positions = torch.cat([torch.arange(length).expand(3, -1) for length in lengths], dim=1).clone()
    positions[1:, 2:5] += torch.tensor([[1], [2]])
    cos, sin = text_rotary(positions, config, bf16=False)
    rows = torch.randn(sum(lengths), config.hidden_size, generator=generator)
    return {"rows": rows, "cos": cos, "sin": sin, "offsets": segments(lengths)}


def _block_kind(config: VisionConfig) -> Kind:
    d, rotation = config.hidden_size, ("n", config.hidden_size // config.num_heads // 2)
    spec = engine_spec(
        BLOCK,
        {"frames": ("F", "n", d), "cos": rotation, "sin": rotation},
        {"frames_out": ("F", "n", d)},
    )

    def examples() -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [block_example(config, count, size, generator) for count, size in FRAMES]

    prefix = "model.visual.blocks.{layer}."
    return Kind(spec, "vlm", prefix, config.depth, lambda: VisionBlock(config), examples, wide=WIDE)


def block_example(
    config: VisionConfig, count: int, size: tuple[int, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Random inputs of a block for `count` frames of `size` (rows, columns) patches."""
    where = torch.stack(block_order(size, config.spatial_merge_size), dim=1)
    channels = config.hidden_size // config.num_heads
    cos, sin = vision_rotary(where, channels, config.rope_theta, bf16=False)
    return {"frames": torch.randn(count, len(where), config.hidden_size, generator=generator), "cos": cos, "sin": sin}
