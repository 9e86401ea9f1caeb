"""A whole Qwen3-VL under its released parameter names, and the parts of one that prompts are run through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.models.vino.vlm_text import LanguageModel
from vino_rt.models.vino.vlm_vision import VisionTower

Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps rows [N, H], cosines and sines [N, C/2] and offsets to rows [N, H]; see `DecoderLayer`."""


class VlmTowers(nn.Module):
    """Vision and text tower under their released names."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.language_model = LanguageModel(config.text)


class Vlm(nn.Module):
    """Both towers and the language head; `tie`: the head shares its weight with the token embedding."""

    def __init__(self, config: VlmConfig, *, tie: bool) -> None:
        super().__init__()
        self.config = config
        self.model = VlmTowers(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self._tie = tie
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding's tensor with the head if they are tied; call it after either was assigned."""
        if self._tie:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight

    def logits(self, rows: Tensor) -> Tensor:
        """Map the output of the last layer [N, H] to logits [N, vocabulary]."""
        out: Tensor = self.lm_head(self.model.language_model.norm(rows))
        return out


@dataclass(frozen=True, eq=False)
class VlmParts:
    """The modules and settings of a VLM that prompts are run through."""

    config: VlmConfig
    embed_tokens: nn.Module
    layers: Sequence[Layer]
    visual: VisionTower
    rotary_bf16: bool = False

    @classmethod
    def of_whole(cls, vlm: Vlm) -> Self:
        """The parts of a whole VLM, with all its layers."""
        inner = vlm.model.language_model
        return cls(vlm.config, inner.embed_tokens, tuple(inner.layers), vlm.model.visual)
