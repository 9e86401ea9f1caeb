"""A whole Qwen3-VL as released, names and all, and the parts of one that prompts are run through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.models.vino.vlm_text import LanguageModel
from vino_rt.models.vino.vlm_vision import VisionTower

Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Rows [N, H], cosines and sines [N, C/2], offsets -> rows [N, H]; see `DecoderLayer`."""


class VlmTowers(nn.Module):
    """Both towers under their released names."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.language_model = LanguageModel(config.text)


class Vlm(nn.Module):
    """Towers and language head; `tie` makes the head the embedding."""

    def __init__(self, config: VlmConfig, *, tie: bool) -> None:
        super().__init__()
        self.config = config
        self.model = VlmTowers(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self._tie = tie
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embedding one tensor where they are tied; to be called after either was assigned."""
        if self._tie:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight

    def logits(self, rows: Tensor) -> Tensor:
        """Output of the last layer [N, H] -> [N, tokens]."""
        out: Tensor = self.lm_head(self.model.language_model.norm(rows))
        return out


@dataclass(frozen=True, eq=False)
class VlmParts:
    """The modules and numbers of a VLM that prompts are run through."""

    config: VlmConfig
    embed_tokens: nn.Module
    layers: Sequence[Layer]
    visual: VisionTower
    rotary_bf16: bool = False

    @classmethod
    def of_whole(cls, vlm: Vlm) -> Self:
        """The parts of a whole VLM, all its layers."""
        inner = vlm.model.language_model
        return cls(vlm.config, inner.embed_tokens, tuple(inner.layers), vlm.model.visual)
