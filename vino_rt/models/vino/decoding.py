"""Autoregressive decoding with a whole VLM: one prefill of the prompts, then one token at a time with a KV cache.

It knows no tokenizer and chooses no token.

Letters: B prompts, A heads of queries, K heads of keys and values, C channels of a head, H width of a state.
"""

from collections.abc import Callable, Sequence
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


class Decoder:
    """The state of decoding B prompts in parallel."""

    def __init__(
        self,
        vlm: Vlm,
        prompts: Sequence[ProcessedInput],
        on_part: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Run the prompts through the VLM, all packed into one call.

        `on_part` is called with how many parts are done and how many there are: prompts embedded, then each layer.
        """
        self._vlm, self._layers = vlm, list(vlm.model.language_model.layers)
        parts, no_queries = VlmParts.of_whole(vlm), vlm.lm_head.weight[:0]

        def see(rows: Tensor, grids: Sequence[Grid]) -> Visual:
            seen: Visual = parts.visual(rows.to(no_queries.device), grids)
            return seen

        embedded = [embed(parts, prompt, no_queries, see) for prompt in prompts]
        self._lengths = torch.tensor([len(prompt.rows) for prompt in embedded])
        self._caches = [KVCache(self._lengths) for _ in self._layers]
        layers = [partial(layer, attend=cache.prefill) for layer, cache in zip(self._layers, self._caches, strict=True)]
        for done, rows in enumerate(run_layers(replace(parts, layers=layers), embedded), start=1):
            on_part(done, 1 + len(layers))
            last = rows
        self._positions = torch.stack([prompt.positions[:, -1] for prompt in embedded], dim=1)
        self.logits = vlm.logits(last[(self._lengths.cumsum(0) - 1).to(last.device)])
        """[B, tokens]: logits of each prompt's next token."""

    def step(self, tokens: Tensor) -> None:
        """Append one token to each prompt, int64 [B], and compute `logits` of the next."""
        self._positions = self._positions + 1
        cos, sin = text_rotary(self._positions, self._vlm.config.text, bf16=False)
        rows = self._vlm.model.language_model.embed_tokens(tokens)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            rows = layer(rows, cos, sin, self._lengths, cache.attend)
        self.logits = self._vlm.logits(rows)


class KVCache:
    """Keys and values of one layer for B prompts and the tokens appended to them."""

    def __init__(self, lengths: Tensor) -> None:
        """lengths: int64 [B], rows of each prompt."""
        self._lengths, self._longest = lengths, int(lengths.max())
        self._keys, self._values = torch.empty(0), torch.empty(0)
        """[B, rows of the longest + tokens appended, K, C]; padded in front."""

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        """`causal_attention` over the packed prompts; stores their keys and values."""
        self._keys, self._values = self._padded(k), self._padded(v)
        return causal_attention(q, k, v, offsets)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        """Append one row per prompt and attend from it to all rows so far: q [B, A, C], k, v [B, K, C] -> [B, A, C]."""
        self._keys = torch.cat((self._keys, k[:, None]), dim=1)
        self._values = torch.cat((self._values, v[:, None]), dim=1)
        first = self._longest - self._lengths
        seen = (torch.arange(self._keys.shape[1]) >= first[:, None]).to(q.device)[:, None, None]
        keys, values, grouped = self._keys.transpose(1, 2), self._values.transpose(1, 2), k.shape[1] != q.shape[1]
        mixed = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen, enable_gqa=grouped)
        return mixed[:, :, 0]

    def _padded(self, rows: Tensor) -> Tensor:
        """Packed rows of all prompts -> [B, rows of the longest, K, C], zeros in front."""
        parts = torch.split(rows, self._lengths.tolist())
        return torch.stack([F.pad(part, (0, 0, 0, 0, self._longest - len(part), 0)) for part in parts])
