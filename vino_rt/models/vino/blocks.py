"""The two kinds of MMDiT block and the text refiner's block (MODEL.md section 4), on one packed sequence of branches.

Shape letters: J rows of the joint sequence (branch by branch: image rows, then text rows; padding last), I rows of the
image stream, T rows of the text stream, D width, H heads, C channels of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.layers import NORM_EPS, FeedForward, JoinedLinear, Projection, RMSNorm, gelu, split_heads
from vino_rt.models.vino.ops import (
    RopeTables,
    Stream,
    boundary_attention,
    gated_residual,
    joint_attention,
    norm_modulate,
)

DUAL_MODULATIONS = 12
SINGLE_MODULATIONS = 3
Modulations = Tensor | Sequence[Tensor]
"""One tensor per modulation, stacked or not: [D], or [rows, D] if the segments of a batch have different timesteps."""


@dataclass(frozen=True)
class Packing:
    """The tensors of a plan that the dual blocks read.

    cos, sin: float32 [I + T, C/2], rotation of each row, image stream first. positions: int32 [I + T, 3], from which
    the rotation is computed. orders: int64 [2, J], the row of the concatenated image and text streams that each joint
    row comes from, and the inverse permutation. offsets: int32, see `boundary_attention`.
    """

    cos: Tensor
    sin: Tensor
    positions: Tensor
    orders: Tensor
    offsets: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under the names of the engine kind `dual_block`'s inputs."""
        rotation = {"cos": self.cos, "sin": self.sin, "positions": self.positions}
        return {**rotation, "orders": self.orders, "offsets": self.offsets}


class DualAttention(nn.Module):
    """Joint attention over both streams with its projections; parameter names of a released dual block's `attn`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, c = config.width, config.attention_head_dim
        self.rope_settings = config.rope_axes_dim, config.rope_theta
        self.norm_q, self.norm_k = RMSNorm(c), RMSNorm(c)
        self.to_q, self.to_k, self.to_v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.to_add_out = nn.Linear(d, d)
        self.norm_added_q, self.norm_added_k = RMSNorm(c), RMSNorm(c)

    def forward(self, image: Tensor, text: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """[I, D], [T, D] -> the same shapes."""
        rope = RopeTables(packing.cos, packing.sin, packing.positions, *self.rope_settings)
        q, k, v = (f(image) for f in (self.to_q, self.to_k, self.to_v))
        text_q, text_k, text_v = (f(text) for f in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        streams = (
            Stream(q, k, v, self.norm_q.weight, self.norm_k.weight),
            Stream(text_q, text_k, text_v, self.norm_added_q.weight, self.norm_added_k.weight),
        )
        mixed, count = joint_attention(streams, rope, packing.offsets, packing.orders), image.shape[0]
        return self.to_out[0](mixed[:count]), self.to_add_out(mixed[count:])


class DualModulation(nn.Module):
    """The AdaLN Linears of one dual block: shift, scale and gate of attention and of the MLP, for each stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = Projection("linear", width, DUAL_MODULATIONS // 2 * width)
        self.norm1_context = Projection("linear", width, DUAL_MODULATIONS // 2 * width)


def dual_modulation(block: nn.Module, time: Tensor) -> Tensor:
    """Apply the AdaLN Linears of a dual block: [S, D] -> [S, 12, D], the image stream's six first."""
    parts = [block.get_submodule(name)(time) for name in ("norm1", "norm1_context")]
    return torch.cat(parts, -1).reshape(time.shape[0], DUAL_MODULATIONS, -1)


class DualBlock(nn.Module):
    """Dual-stream block: separate weights for image and text rows, and joint attention over both."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.width
        self.attn = DualAttention(config)
        self.ff = FeedForward(d, config.mlp_width)
        self.ff_context = FeedForward(d, config.mlp_width)

    def forward(self, image: Tensor, text: Tensor, modulation: Modulations, packing: Packing) -> tuple[Tensor, Tensor]:
        """image [I, D], text [T, D] -> the same shapes.

        modulation [12, D]: for image, then text: shift, scale, gate of attention, then of the MLP.
        """
        m = tuple(modulation)
        image_mix, text_mix = self.attn(norm_modulate(image, m[0], m[1]), norm_modulate(text, m[6], m[7]), packing)
        image = gated_residual(image, m[2], image_mix)
        text = gated_residual(text, m[8], text_mix)
        image = gated_residual(image, m[5], self.ff(norm_modulate(image, m[3], m[4])))
        text = gated_residual(text, m[11], self.ff_context(norm_modulate(text, m[9], m[10])))
        return image, text


class TimedDualBlock(DualBlock):
    """A dual block with its AdaLN Linears, as in the checkpoint."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        timed = DualModulation(config.width)
        self.norm1, self.norm1_context = timed.norm1, timed.norm1_context


class SingleAttention(nn.Module):
    """Attention of a single block; its output projection is shared with the MLP (`SingleBlock.proj_out`)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, c = config.width, config.attention_head_dim
        self.rope_settings = config.rope_axes_dim, config.rope_theta
        self.norm_q, self.norm_k = RMSNorm(c), RMSNorm(c)
        self.to_q, self.to_k, self.to_v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
        """[J, D] -> [J, D]."""
        q, k, v = (f(x) for f in (self.to_q, self.to_k, self.to_v))
        stream = Stream(q, k, v, self.norm_q.weight, self.norm_k.weight)
        return joint_attention([stream], RopeTables(cos, sin, positions, *self.rope_settings), offsets)


class SingleModulation(nn.Module):
    """The AdaLN Linear of one single block: shift, scale and gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Projection("linear", width, SINGLE_MODULATIONS * width)


def single_modulation(block: nn.Module, time: Tensor) -> Tensor:
    """Apply the AdaLN Linear of a single block: [S, D] -> [S, 3, D]."""
    out: Tensor = block.get_submodule("norm")(time)
    return out.reshape(time.shape[0], SINGLE_MODULATIONS, -1)


class SingleBlock(nn.Module):
    """Single-stream block: attention and MLP in parallel on the same normed input, with one output projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.width
        self.attn = SingleAttention(config)
        self.proj_mlp = nn.Linear(d, config.mlp_width)
        self.proj_out = JoinedLinear(d + config.mlp_width, d)

    def forward(
        self, joint: Tensor, modulation: Modulations, cos: Tensor, sin: Tensor, positions: Tensor, offsets: Tensor
    ) -> Tensor:
        """joint [J, D], modulation [3, D] (shift, scale, gate), others as in `Packing` in joint order -> [J, D]."""
        shift, scale, gate = modulation
        x = norm_modulate(joint, shift, scale)
        hidden = gelu(self.proj_mlp(x))
        mixed: Tensor = self.proj_out(self.attn(x, cos, sin, positions, offsets), hidden)
        return gated_residual(joint, gate, mixed)


class TimedSingleBlock(SingleBlock):
    """A single block with its AdaLN Linear, as in the checkpoint."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.norm = SingleModulation(config.width).norm


class RefinerAttention(nn.Module):
    """Self-attention among the text rows of each branch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.width
        self.head_dim = config.attention_head_dim
        self.to_q, self.to_k, self.to_v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = (split_heads(f(x), self.head_dim) for f in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out[0](boundary_attention(q, k, v, offsets).flatten(1))
        return out


class RefinerBlock(nn.Module):
    """Block of the text refiner, with two gates computed from time and pooled text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.width
        self.norm1 = nn.LayerNorm(d, eps=NORM_EPS)
        self.attn = RefinerAttention(config)
        self.norm2 = nn.LayerNorm(d, eps=NORM_EPS)
        self.ff = FeedForward(d, config.mlp_width, silu=True)
        self.norm_out = Projection("linear", d, 2 * d)

    def forward(self, text: Tensor, condition: Tensor, branch: Tensor, offsets: Tensor) -> Tensor:
        """text [T, D], condition [branches, D], branch int64 [T] (row -> branch) -> [T, D]."""
        gates = self.norm_out(nn.functional.silu(condition)).index_select(0, branch)
        attention_gate, mlp_gate = gates.chunk(2, dim=-1)
        text = text + attention_gate * self.attn(self.norm1(text), offsets)
        out: Tensor = text + mlp_gate * self.ff(self.norm2(text))
        return out
