"""Floating-point operations of the matrix products of a training step of the objective `flow`, by formula.

A linear layer with K weights costs 2 K operations a row forward, 2 K for the gradient of its input and 2 K for that of
its weights: 6 K. What reads data alone has no gradient of its input, what is frozen none of its weights. Attention over
L rows of width D is two products forward, 4 L^2 D, and four backward, 8 L^2 D; causal attention counts as whole. Norms,
rotations and sums are not counted, nor is what padding and recomputing cost: this is what must be computed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import EXPANSION, ConnectorConfig
from vino_rt.models.vino.layers import SINUSOID_SIZE
from vino_rt.plan import volume
from vino_rt.train.flow_model import FlowInputs
from vino_rt.train.pack import SampleShape

FORWARD, OF_DATA, FROZEN, WHOLE = 1, 2, 2, 3
"""Products of a linear layer: without gradients, with that of its weights, with that of its input, with both."""


def sample_shapes(given: FlowInputs) -> list[SampleShape]:
    """What each sample of a batch brings to the packed sequence."""
    grids = zip(given.target_grids, given.reference_grids, given.prompts.lengths, strict=True)
    return [SampleShape(target, references, text) for target, references, text in grids]


def flow_flops(model: ModelDir, given: FlowInputs) -> dict[str, float]:
    """Operations by part, for a step that trains all three parts with the learnable queries."""
    return {
        "transformer": transformer_flops(model.transformer, sample_shapes(given)),
        "connectors": connector_flops(model.connector, sample_shapes(given)),
        "vision-language model": vlm_flops(model.vlm, given),
    }


def linear(rows: int, weights: int, products: int = WHOLE) -> float:
    """Operations of linear layers with so many weights in all."""
    return 2.0 * rows * weights * products


def attention(lengths: Iterable[int], width: int, passes: int = WHOLE) -> float:
    """Operations of attention within segments; the backward pass is two of the three passes."""
    return 4.0 * width * passes * sum(length**2 for length in lengths)


def transformer_flops(config: TransformerConfig, shapes: list[SampleShape]) -> float:
    """The MMDiT, forward and backward; each sample has a time of its own."""
    d, mlp, samples = config.width, config.mlp_width, len(shapes)
    text = sum(shape.text_tokens for shape in shapes)
    targets = sum(volume(shape.target) for shape in shapes)
    patches = targets + sum(volume(grid) for shape in shapes for grid in shape.references)
    joint = sum(shape.rows for shape in shapes)
    rows = 4 * d * d + 2 * d * mlp
    # Two embedders of the sample's time, one of the constant guidance.
    inlet = linear(patches, d * config.patch_values, OF_DATA)
    inlet += linear(2 * samples + 1, SINUSOID_SIZE * d, OF_DATA) + linear(2 * samples + 1, d * d)
    inlet += linear(text, config.text_embed_dim * d) + linear(samples, config.text_embed_dim * d + d * d)
    refiner = linear(text, rows) + linear(samples, 2 * d * d) + attention((s.text_tokens for s in shapes), d)
    # Both kinds of block multiply the same; they differ in how many numbers they make of the time.
    block = linear(joint, rows) + attention((shape.rows for shape in shapes), d)
    times = linear(samples, (12 * config.num_layers + 3 * config.num_single_layers + 2) * d * d)
    outlet = linear(targets, d * config.patch_values)
    blocks = (config.num_layers + config.num_single_layers) * block
    return inlet + config.num_refiner_layers * refiner + blocks + times + outlet


def connector_flops(config: ConnectorConfig, shapes: list[SampleShape]) -> float:
    """Both connectors, forward and backward."""

    def pair(rows: int, width: int) -> float:
        return linear(rows, EXPANSION * width * (config.hidden_size + width))

    boundary = 2 * sum(len(shape.references) for shape in shapes)
    return pair(sum(shape.text_tokens for shape in shapes), config.z_dim) + pair(boundary, config.hy_dim)


def vlm_flops(config: Mapping[str, Any], given: FlowInputs) -> float:
    """The frozen VLM up to its last layer but one: gradients pass through it to the queries, pictures need none."""
    text, vision = config["text_config"], config["vision_config"]
    width, heads = text["hidden_size"], text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    layer = linear(
        sum(given.prompts.lengths), width * (2 * heads + 2 * keys + 3 * text["intermediate_size"]), FROZEN
    ) + attention(given.prompts.lengths, heads)
    frames = [h * w for patches in given.prompts.patches for t, h, w in patches.grids for _ in range(t)]
    inner, merge = vision["hidden_size"], vision["spatial_merge_size"] ** 2
    values = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = linear(sum(frames), 4 * inner**2 + 2 * inner * vision["intermediate_size"], FORWARD)
    block += attention(frames, inner, FORWARD)
    merger = linear(sum(frames) // merge, merge * inner * (merge * inner + vision["out_hidden_size"]), FORWARD)
    mergers = (1 + len(vision["deepstack_visual_indexes"])) * merger
    tower = linear(sum(frames), inner * values, FORWARD) + int(vision["depth"]) * block + mergers
    return int(text["num_hidden_layers"] - 1) * layer + tower
