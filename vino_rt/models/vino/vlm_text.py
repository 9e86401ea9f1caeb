"""The text tower of a Qwen3-VL in plain PyTorch: packed rows in, rows out; parameter names are the released ones.

Letters: N rows of all prompts, H width, A heads of queries, K heads of keys and values, C channels of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.models.vino.layers import RMSNorm, embedding, split_heads
from vino_rt.models.vino.vlm_config import TextConfig
from vino_rt.models.vino.vlm_ops import causal_attention, rotate_half

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps queries [N, A, C], keys and values [N, K, C] and offsets to [N, A, C]; see `causal_attention`."""


def inverse_frequency(channels: int, theta: float, device: torch.device) -> Tensor:
    """Rotary frequencies, float32 [channels / 2], falling from 1 towards 1 / theta."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    return 1.0 / theta**exponent


def text_rotary(positions: Tensor, config: TextConfig, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Positions (t, h, w), int64 [3, N] -> float32 cosines and sines [N, C/2].

    Frequencies are assigned to t, h and w in turn until h and w have their share (`mrope_section`); t takes the rest.
    bf16: round the frequencies to bfloat16 as the released pipeline does (MODEL.md section 3).
    """
    frequency = inverse_frequency(config.head_dim, config.rope_theta, positions.device)
    if bf16:
        frequency = frequency.bfloat16().float()
    axis = torch.zeros(config.head_dim // 2, dtype=torch.int64, device=positions.device)
    for number, share in enumerate(config.mrope_section[1:], start=1):
        axis[number : 3 * share : 3] = number
    angle = positions[axis].T.contiguous().float() * frequency
    return angle.cos(), angle.sin()


class TextAttention(nn.Module):
    """Grouped-query attention with RMSNorm on each head of queries and keys."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        h, self.head_dim = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(h, queries, bias=False)
        self.k_proj, self.v_proj = nn.Linear(h, keys, bias=False), nn.Linear(h, keys, bias=False)
        self.o_proj = nn.Linear(queries, h, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim), RMSNorm(self.head_dim)

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor, attend: Attend) -> Tensor:
        """[N, H] -> [N, H]."""
        q, k, v = (split_heads(f(rows), self.head_dim) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_half(self.q_norm(q), cos, sin), rotate_half(self.k_norm(k), cos, sin)
        out: Tensor = self.o_proj(attend(q, k, v, offsets).flatten(1))
        return out


class GatedMLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        h, wide = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(h, wide, bias=False), nn.Linear(h, wide, bias=False)
        self.down_proj = nn.Linear(wide, h, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer: attention, then the MLP, each with a residual connection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = TextAttention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)

    def forward(
        self, rows: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor, attend: Attend = causal_attention
    ) -> Tensor:
        """rows [N, H]; cos, sin of `text_rotary`; offsets int32, one segment a prompt -> [N, H]."""
        rows = rows + self.self_attn(self.input_layernorm(rows), cos, sin, offsets, attend)
        out: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return out


class LanguageModel(nn.Module):
    """Parameters of the whole text tower; `prefill` runs it layer by layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)
