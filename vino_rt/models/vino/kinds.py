"""The engine kinds of VINO's transformer: the module, weights and tensors of each (MODEL.md section 4).

Dynamic sizes: K steps of a schedule, N target patches, M reference patches, S static rows (see `Plan`), I image rows,
T text rows, J = I + T joint rows, B branches, V rows the head reads. Tokens have no batch dimension; P is the number of
values of a patch, D the width, Z the width of text.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vino_rt.backends.base import Dim, EngineSpec, Kind, TensorSpec
from vino_rt.models.vino.blocks import DUAL_MODULATIONS, SINGLE_MODULATIONS, DualBlock, Packing, SingleBlock
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.layers import rope_table
from vino_rt.models.vino.mmdit import Embed, Head, ModulationModule, PatchEmbed, TextInput
from vino_rt.plan import MAX_BRANCHES, BranchShape, Plan, boundary_rows, pack, volume

SEGMENTS = MAX_BRANCHES + 2
DTYPES = {
    "image_index": "int64", "text_branch": "int64", "orders": "int64", "target_index": "int64",
    "positions": "int32", "offsets": "int32", "text_offsets": "int32",
}  # fmt: skip
STEP_KINDS = frozenset({"embed", "dual_block", "single_block", "head"})
"""What every denoise step runs; the other kinds run once per schedule or request, or per tile."""
WIDE = frozenset({"timesteps", "cos", "sin"})
Shapes = Mapping[str, tuple[Dim, ...]]


class DualBlockCall(DualBlock):
    """A dual block with the flat tensor signature that an engine needs."""

    def forward(  # type: ignore[override]
        self, image: Tensor, text: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, positions: Tensor,
        orders: Tensor, offsets: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `DualBlock`; the last five tensors make its `Packing`."""
        return super().forward(image, text, modulation, Packing(cos, sin, positions, orders, offsets))


class ModulationCall(ModulationModule):
    """`ModulationModule` as an engine: without the text embedder, which the release contains but never uses."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        del self.time_text_embed.text_embedder


def engine_spec(kind: str, inputs: Shapes, outputs: Shapes) -> EngineSpec:
    """Spec of a kind from shapes by tensor name; `DTYPES` names the index tensors, all others are float32."""
    return EngineSpec(
        kind,
        tuple(TensorSpec(name, dims, DTYPES.get(name, "float32")) for name, dims in inputs.items()),
        tuple(TensorSpec(name, dims) for name, dims in outputs.items()),
    )


def transformer_kinds(config: TransformerConfig) -> dict[str, Kind]:
    """Every kind of the transformer by name, in the order in which a step runs them."""
    layers = {"dual_block": config.num_layers, "single_block": config.num_single_layers}
    return {
        spec.kind: Kind(
            spec=spec,
            part="transformer",
            prefix=PREFIXES[spec.kind],
            layers=layers.get(spec.kind, 1),
            build=_builder(spec.kind, config),
            examples=_examples(spec, config),
            wide=WIDE,
        )
        for spec in (*_stream_specs(config), *_block_specs(config))
    }


def _stream_specs(config: TransformerConfig) -> tuple[EngineSpec, ...]:
    """Kinds that run once per schedule or request, or in a step before its blocks."""
    d, z, p = config.width, config.text_embed_dim, config.patch_values
    return (
        engine_spec(
            "modulation",
            {"timesteps": ("K",)},
            {"refiner": ("K", d), "dual": ("K", DUAL_MODULATIONS * config.num_layers, d),
             "single": ("K", SINGLE_MODULATIONS * config.num_single_layers, d), "head": ("K", 2, d)},
        ),
        engine_spec("patch", {"patches": ("M", p)}, {"rows": ("M", d)}),
        engine_spec("text", {"text": ("T", z), "pooled": ("B", z)}, {"tokens": ("T", d), "pooled_condition": ("B", d)}),
        engine_spec(
            "embed",
            {"target": ("N", p), "static": ("S", d), "image_index": ("I",), "tokens": ("T", d), "condition": ("B", d),
             "text_branch": ("T",), "text_offsets": (SEGMENTS,)},
            {"image": ("I", d), "context": ("T", d)},
        ),
    )  # fmt: skip


def _block_specs(config: TransformerConfig) -> tuple[EngineSpec, ...]:
    """Kinds of the blocks of a step and of the head."""
    d, rotation = config.width, ("J", config.attention_head_dim // 2)
    rows: Shapes = {"cos": rotation, "sin": rotation, "positions": ("J", 3)}
    plan: Shapes = {**rows, "orders": (2, "J"), "offsets": (SEGMENTS,)}
    return (
        engine_spec(
            "dual_block",
            {"image": ("I", d), "text": ("T", d), "modulation": (DUAL_MODULATIONS, d), **plan},
            {"image_out": ("I", d), "text_out": ("T", d)},
        ),
        engine_spec(
            "single_block",
            {"joint": ("J", d), "modulation": (SINGLE_MODULATIONS, d), **rows, "offsets": (SEGMENTS,)},
            {"joint_out": ("J", d)},
        ),
        engine_spec(
            "head",
            {"joint": ("J", d), "modulation": (2, d), "target_index": ("V",)},
            {"velocity": ("V", config.velocity_values)},
        ),
    )


PREFIXES = {
    "modulation": "",
    "patch": "x_embedder.",
    "text": "context_embedder.",
    "embed": "",
    "dual_block": "transformer_blocks.{layer}.",
    "single_block": "single_transformer_blocks.{layer}.",
    "head": "",
}


def _builder(name: str, config: TransformerConfig) -> Callable[[], torch.nn.Module]:
    modules: dict[str, Callable[[], torch.nn.Module]] = {
        "modulation": lambda: ModulationCall(config),
        "patch": lambda: PatchEmbed(config),
        "text": lambda: TextInput(config),
        "embed": lambda: Embed(config),
        "dual_block": lambda: DualBlockCall(config),
        "single_block": lambda: SingleBlock(config),
        "head": lambda: Head(config),
    }
    return modules[name]


def example_plans() -> tuple[Plan, ...]:
    """Packed sequences to trace and verify with: three branches, padded; one branch; two branches with a reference."""
    references = ((1, 3, 5), (2, 2, 3))
    three = [BranchShape((0, 1), 13), BranchShape((0, 1), 7), BranchShape((1,), 17)]
    return (
        pack((2, 3, 5), references, three, image_tokens=211, text_tokens=43),
        pack((1, 3, 3), (), [BranchShape((), 11)]),
        pack((1, 5, 7), references[:1], [BranchShape((0,), 19), BranchShape((0,), 5)]),
    )


def _examples(spec: EngineSpec, config: TransformerConfig) -> Callable[[], list[dict[str, Tensor]]]:
    def make() -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [_example(spec, config, plan, generator) for plan in example_plans()]

    return make


def _example(spec: EngineSpec, config: TransformerConfig, plan: Plan, generator: torch.Generator) -> dict[str, Tensor]:
    static = 1 + sum(volume(g) for g in plan.references) + boundary_rows(plan.branches)
    sizes = {
        "K": 3, "M": max(2, sum(volume(g) for g in plan.references)), "N": volume(plan.target), "S": static,
        "I": plan.image_tokens, "T": plan.text_tokens, "J": plan.image_tokens + plan.text_tokens,
        "B": len(plan.branches), "V": plan.target_index.shape[0],
    }  # fmt: skip
    cos, sin = rope_table(plan.positions, config.rope_axes_dim, config.rope_theta)
    known = {
        "timesteps": torch.tensor([999.0, 555.5, 17.25]), "cos": cos, "sin": sin, "positions": plan.positions,
        "image_index": plan.image_index, "text_branch": plan.text_branch,
        "orders": torch.stack((plan.joint_index, plan.stream_index)), "target_index": plan.target_index,
        "offsets": plan.offsets, "text_offsets": plan.text_offsets,
    }  # fmt: skip
    inputs = {}
    for tensor in spec.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.dims]
        inputs[tensor.name] = known[tensor.name] if tensor.name in known else torch.randn(shape, generator=generator)
    return inputs
