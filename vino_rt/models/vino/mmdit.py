"""The multimodal diffusion transformer of VINO: the HunyuanVideo layout with reference and boundary rows.

`MMDiT` owns the released parameter names and reads like the paper (section 3): embed, dual blocks, single blocks, head.
Its parts are small modules with flat tensor signatures, so that each can be compiled as an engine of its own; nothing
here knows that engines exist. Shape letters as in `blocks`, S steps of a schedule, N target patches, M reference
patches, P values of a patch, Z width of the text stream. Source: MODEL.md section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.models.vino.blocks import (
    DUAL_MODULATIONS,
    SINGLE_MODULATIONS,
    DualModulation,
    Packing,
    RefinerBlock,
    SingleModulation,
    TimedDualBlock,
    TimedSingleBlock,
    dual_modulation,
    single_modulation,
)
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.layers import SINUSOID_SIZE, EmbeddingMLP, Projection, rope_table, sinusoid, widen
from vino_rt.models.vino.ops import norm_modulate
from vino_rt.plan import Plan, Rows

GUIDANCE = 1000.0
"""Embedded guidance, a constant of the released model (MODEL.md section 4)."""


class PatchEmbed(nn.Module):
    """Patch embedding: a Linear over flattened patches, on the weights of the checkpoint's strided convolution."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = (config.patch_size_t, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.width, kernel_size=size, stride=size)

    def forward(self, patches: Tensor) -> Tensor:
        """[M, P] -> [M, D]."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TextInput(nn.Module):
    """The part of the text refiner that does not depend on time; computed once per request."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.proj_in = nn.Linear(config.text_embed_dim, config.width)
        self.time_text_embed = nn.ModuleDict({"text_embedder": EmbeddingMLP(config.text_embed_dim, config.width)})

    def forward(self, text: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """text [T, Z], pooled [branches, Z] (mean over a branch's rows) -> [T, D], [branches, D]."""
        return self.proj_in(text), self.time_text_embed["text_embedder"](pooled)


class TokenRefiner(nn.Module):
    """Refiner blocks over the text rows, gated by time and pooled text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.refiner_blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.num_refiner_layers))

    def forward(self, text: Tensor, condition: Tensor, branch: Tensor, offsets: Tensor) -> Tensor:
        """See `RefinerBlock`."""
        for block in self.refiner_blocks:
            text = block(text, condition, branch, offsets)
        return text


class ContextEmbedder(TextInput):
    """The text refiner: everything under the released name `context_embedder`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.time_text_embed["timestep_embedder"] = EmbeddingMLP(SINUSOID_SIZE, config.width)
        self.token_refiner = TokenRefiner(config)


class TimeGuidanceEmbed(nn.Module):
    """`time_text_embed` of the checkpoint; its text embedder is loaded and never used (MODEL.md section 4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.timestep_embedder = EmbeddingMLP(SINUSOID_SIZE, config.width)
        self.guidance_embedder = EmbeddingMLP(SINUSOID_SIZE, config.width)
        self.text_embedder = EmbeddingMLP(config.pooled_projection_dim, config.width)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps float32 [S] (999 * noise level) -> [S, D] in the weights' dtype."""
        dtype = self.timestep_embedder.linear_1.weight.dtype
        guidance = torch.full((1,), GUIDANCE, device=timesteps.device)
        time: Tensor = self.timestep_embedder(sinusoid(timesteps).to(dtype))
        strength: Tensor = self.guidance_embedder(sinusoid(guidance).to(dtype))
        return time + strength


class Head(nn.Module):
    """Final modulated norm and projection, for the target's rows only."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.proj_out = nn.Linear(config.width, config.velocity_values)

    def forward(self, joint: Tensor, modulation: Tensor, target_index: Tensor) -> Tensor:
        """joint [J, D], modulation [2, D] (scale, then shift), target_index int64 [B*N] -> velocity [B*N, P]."""
        scale, shift = modulation.unbind(0)
        out: Tensor = self.proj_out(norm_modulate(joint.index_select(0, target_index), shift, scale))
        return out


class Embed(nn.Module):
    """Assembles the rows of both streams at the start of a step."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.x_embedder = PatchEmbed(config)
        self.context_embedder = nn.ModuleDict({"token_refiner": TokenRefiner(config)})

    def forward(
        self,
        target: Tensor,
        static: Tensor,
        image_index: Tensor,
        tokens: Tensor,
        condition: Tensor,
        text_branch: Tensor,
        text_offsets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Embed the target, gather the image stream, refine the text.

        target [N, P]; static [rows, D], the source table of `plan.Rows` up to the target; tokens [T, D]; condition
        [branches, D]; index tensors as in `plan.Rows`. Returns image [I, D] and text [T, D].
        """
        source = torch.cat((static, self.x_embedder(target)))
        return source.index_select(0, image_index), self.context_embedder["token_refiner"](
            tokens, condition, text_branch, text_offsets
        )


class ModulationModule(nn.Module):
    """The part of the transformer that depends on time alone; parameter names as in `MMDiT`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.width
        self.time_text_embed = TimeGuidanceEmbed(config)
        time = EmbeddingMLP(SINUSOID_SIZE, d)
        self.context_embedder: nn.Module = nn.ModuleDict(
            {"time_text_embed": nn.ModuleDict({"timestep_embedder": time})}
        )
        self.transformer_blocks = nn.ModuleList(DualModulation(d) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleModulation(d) for _ in range(config.num_single_layers))
        self.norm_out = Projection("linear", d, 2 * d)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute all modulations of a schedule.

        timesteps float32 [S] (999 * noise level). Returns refiner [S, D], dual [S, 12 * dual blocks, D], single
        [S, 3 * single blocks, D] and head [S, 2, D] (scale, then shift).
        """
        refiner_time = self.get_submodule("context_embedder.time_text_embed.timestep_embedder")
        temb = self.time_text_embed(timesteps)
        c = F.silu(temb)
        dual = torch.cat([dual_modulation(block, c) for block in self.transformer_blocks], dim=1)
        single = torch.cat([single_modulation(block, c) for block in self.single_transformer_blocks], dim=1)
        head = self.norm_out(c).reshape(c.shape[0], 2, -1)
        return refiner_time(sinusoid(timesteps).to(temb.dtype)), dual, single, head


class MMDiT(ModulationModule):
    """The whole transformer under its released parameter names; the reference for every engine and for training."""

    def __init__(self, config: TransformerConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.context_embedder = ContextEmbedder(config)
        self.time_text_embed = TimeGuidanceEmbed(config)
        self.transformer_blocks = nn.ModuleList(TimedDualBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            TimedSingleBlock(config) for _ in range(config.num_single_layers)
        )
        self.norm_out = Projection("linear", config.width, 2 * config.width)
        self.proj_out = nn.Linear(config.width, config.velocity_values)

    def forward(  # type: ignore[override]
        self, target: Tensor, references: Tensor, boundary: Tensor, text: Tensor, plan: Plan, timestep: Tensor
    ) -> Tensor:
        """Velocity of the target in each branch of the plan, [branches, N, P].

        target [N, P]; references [M, P], patches of all references; boundary [R, D] and text [T, Z] from the connector,
        branch by branch; timestep float32 [1] (999 * noise level).
        """
        out = self.velocity(target, references, boundary, text, plan, timestep)
        return out.reshape(len(plan.branches), -1, out.shape[1])

    def velocity(
        self, target: Tensor, references: Tensor, boundary: Tensor, text: Tensor, rows: Rows, timesteps: Tensor
    ) -> Tensor:
        """Velocity of the targets of all segments, which may be samples of a training batch: [rows of all targets, P].

        Arguments as in `forward`, except that target holds the patches of every target, and timesteps, float32, is [1]
        (shared) or [segments].
        """
        refiner, dual, single, head = super().forward(timesteps)
        tokens, pooled = self.context_embedder(text, branch_means(text, rows))
        source = torch.cat((static_rows(self.x_embedder(references), boundary), self.x_embedder(target)))
        image = source.index_select(0, rows.image_index)
        refine = self.context_embedder.get_submodule("token_refiner")
        context = refine(tokens, pooled + refiner, rows.text_branch, rows.text_offsets)
        packing = make_packing(rows, self.config)
        own = Owners.of(rows) if len(timesteps) > 1 else SHARED
        for i, block in enumerate(self.transformer_blocks):
            modulation = dual[:, DUAL_MODULATIONS * i : DUAL_MODULATIONS * (i + 1)]
            image, context = block(image, context, spread(modulation, own.dual), packing)
        joint = torch.cat((image, context)).index_select(0, rows.joint_index)
        rotation = [x.index_select(0, rows.joint_index) for x in (packing.cos, packing.sin, packing.positions)]
        for i, block in enumerate(self.single_transformer_blocks):
            modulation = single[:, SINGLE_MODULATIONS * i : SINGLE_MODULATIONS * (i + 1)]
            joint = block(joint, spread(modulation, own.single), *rotation, rows.offsets)
        scale, shift = spread(head, own.head)
        out: Tensor = self.proj_out(norm_modulate(joint.index_select(0, rows.target_index), shift, scale))
        return out


@dataclass(frozen=True, eq=False)
class Owners:
    """Which segment's modulation applies to each row: per modulation, an int64 [rows]; None: one for all rows."""

    dual: tuple[Tensor, ...] | None = None
    single: tuple[Tensor, ...] | None = None
    head: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, rows: Rows) -> "Owners":
        """Owners of the rows of a packed sequence without padding."""
        order = torch.arange(len(rows.joint_index), device=rows.joint_index.device)
        joint = torch.bucketize(order, rows.offsets[1:-1], right=True)
        image = joint.index_select(0, rows.stream_index[: rows.image_tokens])
        half = DUAL_MODULATIONS // 2
        target = joint.index_select(0, rows.target_index)
        return cls((image,) * half + (rows.text_branch,) * half, (joint,) * SINGLE_MODULATIONS, (target,) * 2)


SHARED = Owners()


def spread(modulation: Tensor, owners: tuple[Tensor, ...] | None) -> Sequence[Tensor]:
    """Split modulations [S, K, D] into K tensors: [D] if all rows share them (S = 1), else [rows, D] by owner."""
    if owners is None:
        return modulation[0].unbind(0)
    return [part.index_select(0, rows) for part, rows in zip(modulation.unbind(1), owners, strict=True)]


def static_rows(references: Tensor, boundary: Tensor) -> Tensor:
    """The part of a plan's source table that no step changes: a zero row, reference rows, boundary rows; [rows, D]."""
    return torch.cat((references.new_zeros(1, references.shape[1]), references, boundary.to(references.dtype)))


def branch_means(text: Tensor, rows: Rows) -> Tensor:
    """Mean of each segment's text rows, computed in float32: [T, Z] -> [segments, Z] (MODEL.md section 4, refiner)."""
    used = text[: sum(rows.text_lengths)]
    means = [widen(part).mean(0) for part in torch.split(used, list(rows.text_lengths))]
    return torch.stack(means).to(text.dtype)


def make_packing(rows: Rows, config: TransformerConfig) -> Packing:
    """The rotation and index tensors that all blocks of a packed sequence share."""
    cos, sin = rope_table(rows.positions, config.rope_axes_dim, config.rope_theta)
    return Packing(cos, sin, rows.positions, torch.stack((rows.joint_index, rows.stream_index)), rows.offsets)
