"""The vision tower of a Qwen3-VL in plain PyTorch: patch rows in, visual rows out; parameter names as released.

Letters: F frames of one size, n patches of a frame (in blocks that become one visual row each), D width, C channels of
a head, P values of a patch, V visual rows, H width of the text tower.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.models.vino.layers import NORM_EPS, embedding
from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.vlm_config import VisionConfig
from vino_rt.models.vino.vlm_ops import frame_attention, rotate_half
from vino_rt.models.vino.vlm_text import inverse_frequency

Visual = tuple[Tensor, list[Tensor]]
"""Visual rows [V, H], and the values [V, H] that deepstack adds to them after each of the first decoder layers."""


class PatchEmbed(nn.Module):
    """Patch embedding: a Linear, stored under the name and shape of a convolution."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, kernel)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., P] -> [..., D] in the weights' dtype."""
        # A convolution whose stride equals its kernel is a matrix product over patches.
        return F.linear(rows.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class VisionAttention(nn.Module):
    """Full attention among the patches of each frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, rows: Tensor, frames: int, cos: Tensor, sin: Tensor) -> Tensor:
        """[F * n, D] -> [F * n, D]."""
        q, k, v = self.qkv(rows).view(frames, -1, 3, self.num_heads, rows.shape[1] // self.num_heads).unbind(2)
        mixed = frame_attention(rotate_half(q, cos, sin), rotate_half(k, cos, sin), v)
        out: Tensor = self.proj(mixed.view(rows.shape))
        return out


class VisionMLP(nn.Module):
    """Linear, tanh GELU, Linear."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """[F * n, D] -> [F * n, D]."""
        out: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(rows), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    """Pre-norm block: attention, then the MLP, each with a residual connection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, frames: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """frames [F, n, D], cos and sin from `vision_rotary` -> [F, n, D]; frames do not attend to each other."""
        rows: Tensor = frames.flatten(0, 1)
        rows = rows + self.attn(self.norm1(rows), frames.shape[0], cos, sin)
        rows = rows + self.mlp(self.norm2(rows))
        return rows.view(frames.shape)


class PatchMerger(nn.Module):
    """Merges a block of adjacent patches into one row of the text tower's width.

    whole: normalise the block as a whole, as deepstack's mergers do, instead of each patch.
    """

    def __init__(self, config: VisionConfig, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(self.width if whole else config.hidden_size, eps=NORM_EPS)
        self.linear_fc1 = nn.Linear(self.width, self.width)
        self.linear_fc2 = nn.Linear(self.width, config.out_hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """[F, n, D] -> visual rows [V, H] in the weights' dtype."""
        frames = frames.to(self.norm.weight.dtype)
        rows = self.norm(frames.view(-1, self.width) if self.whole else frames).view(-1, self.width)
        out: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(rows)))
        return out


class VisionTower(nn.Module):
    """Maps patches of pictures and clips to visual rows; rotary_bf16: compute the rotation in bfloat16 as released."""

    def __init__(self, config: VisionConfig, *, rotary_bf16: bool = False) -> None:
        super().__init__()
        self.config, self.rotary_bf16 = config, rotary_bf16
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, whole=False)
        deepstack = config.deepstack_visual_indexes
        self.deepstack_merger_list = nn.ModuleList(PatchMerger(config, whole=True) for _ in deepstack)

    def forward(self, rows: Tensor, grids: Sequence[Grid]) -> Visual:
        """Map patch rows [sum of t*h*w, P] of pictures or clips, with their grids in order, to visual rows.

        Frames of one size are computed together, since frames do not attend to each other.
        """
        sizes = [size[1:] for size in grids for _ in range(size[0])]
        if len(set(sizes)) == 1:
            outs = self._see(rows.view(len(sizes), -1, rows.shape[1]), sizes[0])
            return outs[0], outs[1:]
        frames = torch.tensor_split(rows, torch.tensor([height * width for height, width in sizes]).cumsum(0)[:-1])
        found: dict[int, tuple[Tensor, ...]] = {}
        for size in dict.fromkeys(sizes):
            members = [number for number, other in enumerate(sizes) if other == size]
            outs = self._see(torch.stack([frames[number] for number in members]), size)
            found.update(zip(members, zip(*(out.chunk(len(members)) for out in outs), strict=True), strict=True))
        first, *rest = (torch.cat(layer) for layer in zip(*(found[n] for n in range(len(sizes))), strict=True))
        return first, rest

    def _see(self, frames: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Frames [F, n, P] of one size -> visual rows, then deepstack's values, each [V, H]."""
        config = self.config
        hidden = self.patch_embed(frames)
        rows, columns = block_order(size, config.spatial_merge_size)
        taps, weight = position_taps(size, rows, columns, round(config.num_position_embeddings**0.5))
        positions = (self.pos_embed(taps.to(hidden.device)) * weight.to(hidden.device)[:, :, None]).sum(1)
        hidden = hidden + positions.to(hidden.dtype)
        channels = config.hidden_size // config.num_heads
        where = torch.stack((rows, columns), dim=1).to(hidden.device)
        cos, sin = vision_rotary(where, channels, config.rope_theta, bf16=self.rotary_bf16)
        deepstack = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, cos, sin)
            if number in config.deepstack_visual_indexes:
                merger = self.deepstack_merger_list[config.deepstack_visual_indexes.index(number)]
                deepstack.append(merger(hidden))
        return [self.merger(hidden), *deepstack]


def vision_rotary(positions: Tensor, channels: int, theta: float, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns [n, 2] -> float32 cosines and sines [n, channels / 2].

    bf16: compute in bfloat16 as the released pipeline does (MODEL.md section 3).
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    frequency = inverse_frequency(channels // 2, theta, positions.device).to(dtype)
    angle = (positions[..., None].to(dtype) * frequency).flatten(1)
    return angle.cos().float(), angle.sin().float()


def block_order(size: tuple[int, int], merge: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch of a frame, int64 [n] each, ordered by blocks of merge x merge patches."""
    height, width = size
    order = torch.arange(height * width).view(height // merge, merge, width // merge, merge).transpose(1, 2).flatten()
    return order // width, order % width


def position_taps(size: tuple[int, int], rows: Tensor, columns: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation of side x side learned positions: four indices int64 [n, 4] and weights float32 [n, 4]."""
    (row_taps, row_weights), (column_taps, column_weights) = (_axis_taps(count, side) for count in size)
    taps = row_taps[rows][:, :, None] * side + column_taps[columns][:, None, :]
    weights = row_weights[rows][:, :, None] * column_weights[columns][:, None, :]
    return taps.flatten(1), weights.flatten(1)


def _axis_taps(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of `count` points from `side` points: two indices and weights each, [count, 2]."""
    coordinate = torch.arange(count, dtype=torch.float32) * (side - 1) / torch.tensor(max(count - 1, 1))
    taps = coordinate.floor().long()[:, None] + torch.arange(2)
    weights = (1 - (coordinate[:, None] - taps).abs()).clamp(min=0)
    return taps.clamp(max=side - 1), weights
