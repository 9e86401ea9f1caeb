"""A model directory of a few thousand weights that speaks the world's language, for tests of training."""

import json
from pathlib import Path
from typing import Any

import vino_rt.models.vino.preset as preset
from vino_rt.model_dir import ModelDir

SOURCE = Path(preset.__file__).parent / "presets" / "mini.json"


def small_preset() -> dict[str, Any]:
    """The preset `mini` with fewer and narrower layers."""
    data: dict[str, Any] = json.loads(SOURCE.read_text(encoding="utf-8"))
    data["transformer"] |= {
        "num_attention_heads": 2, "attention_head_dim": 8, "rope_axes_dim": [4, 2, 2], "num_layers": 1,
        "num_single_layers": 1, "text_embed_dim": 12,
    }  # fmt: skip
    data["vae"] |= {"block_out_channels": [4, 4, 8, 8], "norm_num_groups": 2}
    data["vlm"]["text_config"] |= {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "head_dim": 8, "num_attention_heads": 2,
        "num_key_value_heads": 2, "rope_scaling": {"rope_type": "default", "mrope_interleaved": True,
        "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    data["vlm"]["vision_config"] |= {
        "hidden_size": 16, "intermediate_size": 12, "num_heads": 2, "depth": 2, "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    data["connector"] = {"num_queries": 3, "hidden_size": 16, "z_dim": 12, "hy_dim": 16}
    return data


def make_small_model(out: Path) -> ModelDir:
    """Write and open it."""
    return preset.write_preset(small_preset(), out, seed=3)
