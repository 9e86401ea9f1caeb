"""A whole VLM that reads prompts once and then goes on token by token; it knows no tokenizer and picks no token.

Letters: B prompts, A heads of queries, K heads of keys and values, C channels of a head, H width of a state.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_rt.models.vino.prefill import embed, run_layers
from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.prompt import ProcessedInput
from vino_rt.models.vino.vlm import Vlm, VlmParts
from vino_rt.models.vino.vlm_ops import causal_attention
from vino_rt.models.vino.vlm_text import text_rotary
from vino_rt.models.vino.vlm_vision import Visual


class Speech:
    """What was read and said so far, of B prompts side by side."""

    def __init__(self, vlm: Vlm, prompts: Sequence[ProcessedInput]) -> None:
        """Read the prompts, all in one call."""
        self._vlm, self._layers = vlm, list(vlm.model.language_model.layers)
        parts, nothing = VlmParts.of_whole(vlm), vlm.lm_head.weight[:0]

        def see(rows: Tensor, grids: Sequence[Grid]) -> Visual:
            seen: Visual = parts.visual(rows.to(nothing.device), grids)
            return seen

        ready = [embed(parts, prompt, nothing, see) for prompt in prompts]
        self._lengths = torch.tensor([len(prompt.rows) for prompt in ready])
        self._memories = [Memory(self._lengths) for _ in self._layers]
        listening = [partial(a, attend=b.read) for a, b in zip(self._layers, self._memories, strict=True)]
        *_, rows = run_layers(replace(parts, layers=listening), ready)
        self._positions = torch.stack([prompt.positions[:, -1] for prompt in ready], dim=1)
        self.logits = vlm.logits(rows[(self._lengths.cumsum(0) - 1).to(rows.device)])
        """[B, tokens]: how likely each comes next."""

    def say(self, tokens: Tensor) -> None:
        """Go on with a token, int64 [B], behind each prompt."""
        self._positions = self._positions + 1
        cos, sin = text_rotary(self._positions, self._vlm.config.text, bf16=False)
        rows = self._vlm.model.language_model.embed_tokens(tokens)
        for layer, memory in zip(self._layers, self._memories, strict=True):
            rows = layer(rows, cos, sin, self._lengths, memory.say)
        self.logits = self._vlm.logits(rows)


class Memory:
    """Keys and values of one layer for B prompts: those of what was read, and of what is said since."""

    def __init__(self, lengths: Tensor) -> None:
        """lengths: int64 [B], rows of each prompt."""
        self._lengths, self._longest = lengths, int(lengths.max())
        self._keys, self._values = torch.empty(0), torch.empty(0)
        """[B, rows of the longest + tokens said, K, C]; padded in front."""

    def read(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        """`causal_attention` over the prompts, end to end; remembers their keys and values."""
        self._keys, self._values = self._padded(k), self._padded(v)
        return causal_attention(q, k, v, offsets)

    def say(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        """Attention of one row of each prompt, q [B, A, C], k and v [B, K, C], over all before it -> [B, A, C]."""
        self._keys = torch.cat((self._keys, k[:, None]), dim=1)
        self._values = torch.cat((self._values, v[:, None]), dim=1)
        first = self._longest - self._lengths
        seen = (torch.arange(self._keys.shape[1]) >= first[:, None]).to(q.device)[:, None, None]
        keys, values, grouped = self._keys.transpose(1, 2), self._values.transpose(1, 2), k.shape[1] != q.shape[1]
        mixed = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen, enable_gqa=grouped)
        return mixed[:, :, 0]

    def _padded(self, rows: Tensor) -> Tensor:
        """Rows of all prompts end to end -> [B, rows of the longest, K, C], zeros in front."""
        parts = torch.split(rows, self._lengths.tolist())
        return torch.stack([F.pad(part, (0, 0, 0, 0, self._longest - len(part), 0)) for part in parts])
