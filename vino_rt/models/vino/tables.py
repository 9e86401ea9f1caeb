"""Names and shapes of the tensors of each part of VINO, derived from its config; knows no files.

The tables are read off the reference modules, built on the meta device, so that names and shapes have a single source.
The exception is the autoencoder, whose modules take seconds to import (`vae_table`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig, ConnectorPair
from vino_rt.models.vino.mmdit import MMDiT
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.models.vino.vae_table import decoder_table, encoder_table
from vino_rt.models.vino.vlm import Vlm
from vino_rt.models.vino.vlm_config import WHERE, VlmConfig

Table = dict[str, tuple[int, ...]]
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def transformer_table(config: TransformerConfig) -> Table:
    """Tensors of `transformer/`, under their released names without the prefix `transformer.`."""
    with torch.device("meta"):
        return _shapes(MMDiT(config))


def connector_table(config: ConnectorConfig) -> Table:
    """Tensors of `connector/`: the learnable queries `[num_queries, H]` and both connectors."""
    with torch.device("meta"):
        return {"metaquery": (config.num_queries, config.hidden_size), **_shapes(ConnectorPair(config))}


def vae_table(config: VaeConfig) -> Table:
    """Tensors of `vae/`, names as in diffusers."""
    return {**encoder_table(config), **decoder_table(config)}


def vlm_table(config: Mapping[str, Any], where: str = WHERE) -> Table:
    """Tensors of `vlm/`, names as in transformers, `lm_head.weight` included even where it is tied to the embedding.

    Raises ModelError when the parsed config is not that of a Qwen3-VL we can run.
    """
    with torch.device("meta"):
        return _shapes(Vlm(VlmConfig.from_json(config, where), tie=bool(optional_names(config))))


def optional_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in the VLM's table that a checkpoint may omit because they repeat another tensor."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings", False) if isinstance(text, Mapping) else False
    return (LM_HEAD,) if config.get("tie_word_embeddings", inner) else ()


def _shapes(module: nn.Module) -> Table:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
