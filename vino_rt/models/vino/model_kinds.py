"""Every engine kind of a VINO model: those of the VLM, the connectors, the transformer and the autoencoder's tiles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vino_rt.backends.base import EngineSpec, Kind
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig, ConnectorPair
from vino_rt.models.vino.kinds import engine_spec, transformer_kinds
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.models.vino.vae_table import decoder_table, encoder_table
from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.models.vino.vlm_kinds import vlm_kinds

VAE_TILES = ((3, 4, 5), (1, 3, 2), (2, 5, 3), (5, 3, 4))
"""Latent frames, height and width of the tiles the autoencoder is verified on; the first is traced."""


def model_kinds(
    vlm: VlmConfig, connector: ConnectorConfig, transformer: TransformerConfig, vae: VaeConfig
) -> dict[str, Kind]:
    """Engine kinds by name, in the order a request needs them; the transformer's in the order of a step."""
    return {
        **vlm_kinds(vlm),
        "connector": _connector_kind(connector),
        **transformer_kinds(transformer),
        "vae_encode": _encode_kind(vae),
        "vae_decode": _decode_kind(vae),
    }


def _connector_kind(config: ConnectorConfig) -> Kind:
    h = config.hidden_size
    spec = engine_spec(
        "connector",
        {"states": ("L", h), "boundary_states": ("R", h)},
        {"text": ("L", config.z_dim), "boundary": ("R", config.hy_dim)},
    )

    def examples() -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        pairs = ((23, 4), (11, 0), (37, 6))
        draw = [(torch.randn(a, h, generator=generator), torch.randn(b, h, generator=generator)) for a, b in pairs]
        return [{"states": states, "boundary_states": boundary} for states, boundary in draw]

    return Kind(spec, "connector", "", 1, lambda: ConnectorPair(config), examples)


def _encode_kind(config: VaeConfig) -> Kind:
    spec = engine_spec(
        "vae_encode",
        {"pixels": (1, config.in_channels, "F", "H", "W")},
        {"moments": (1, 2 * config.latent_channels, "t", "h", "w")},
    )
    sizes = [(4 * t - 3, 8 * h, 8 * w) for t, h, w in VAE_TILES]
    return _vae_kind(spec, lambda: VaeEncoder(config), sizes, lambda: encoder_table(config))


def _decode_kind(config: VaeConfig) -> Kind:
    spec = engine_spec(
        "vae_decode",
        {"latents": (1, config.latent_channels, "t", "h", "w")},
        {"pixels": (1, config.out_channels, "F", "H", "W")},
    )
    return _vae_kind(spec, lambda: VaeDecoder(config), VAE_TILES, lambda: decoder_table(config))


def _vae_kind(
    spec: EngineSpec,
    build: Callable[[], Any],
    sizes: Sequence[tuple[int, int, int]],
    table: Callable[[], Mapping[str, tuple[int, ...]]],
) -> Kind:
    tensor = spec.inputs[0]
    channels = int(tensor.dims[1])

    def examples() -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [{tensor.name: torch.randn(1, channels, *size, generator=generator)} for size in sizes]

    def dynamic() -> tuple[Mapping[int, Any], ...]:
        with torch.device("meta"):
            shapes: tuple[Mapping[int, Any], ...] = build().dynamic_shapes()
        return shapes

    return Kind(spec, "vae", "", 1, build, examples, dynamic, table=table)
