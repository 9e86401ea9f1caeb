"""The tables derived from configs are the released keys and shapes, at full size and without storage."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.tables import connector_table, transformer_table, vae_table, vlm_table
from vino_rt.models.vino.vae_config import VaeConfig


def full_size(golden: Path, name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((golden / "keymap" / f"{name}.json").read_text()).items()}


def test_full_size_tables_are_the_released_keys(golden: Path) -> None:
    configs = json.loads((golden / "keymap" / "configs.json").read_text())
    transformer = transformer_table(TransformerConfig.from_json(configs["transformer"]))
    connector = connector_table(ConnectorConfig(num_queries=configs["metaquery"], **configs["connector"]))
    assert transformer == full_size(golden, "transformer")
    assert len(transformer) == 1264
    released = {f"transformer.{k}": v for k, v in transformer.items()} | {
        f"mm_encoder.{k}": v for k, v in connector.items()
    }
    assert released == full_size(golden, "vino_ckpt")
    assert vae_table(VaeConfig.from_json(configs["vae"])) == full_size(golden, "vae")
    vlm = vlm_table({"model_type": "qwen3_vl", **configs["qwen3_vl_4b"]})
    assert vlm == full_size(golden, "qwen3_vl_4b")
    inside = {f"mm_encoder.mm_encoder.{name}": shape for name, shape in vlm.items()}
    assert inside == full_size(golden, "vino_ckpt_optional_qwen")


def test_vae_table_is_the_library_model(golden: Path) -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    config = VaeConfig.from_json(
        json.loads((golden / "e2e_ckpt" / "HunyuanVideo-tiny" / "vae" / "config.json").read_text())
    )
    with torch.device("meta"):
        model: nn.Module = AutoencoderKLHunyuanVideo(**asdict(config))
    assert vae_table(config) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
