"""The vision-language model's config.json: is it a Qwen3-VL we can run, and what its library makes of it."""

from collections.abc import Mapping
from typing import Any

from vino_rt.errors import ModelError

MODEL_TYPE = "qwen3_vl"
TOKEN_FIELDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def check_config(config: Mapping[str, Any]) -> int:
    """Layers of the VLM a parsed config.json describes; ModelError when it is not a Qwen3-VL we can run."""
    if missing := [name for name in ("text_config", "vision_config", *TOKEN_FIELDS) if name not in config]:
        raise ModelError(f"vlm/config.json lacks {missing}: not the config of a Qwen3-VL")
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise ModelError(f"vlm/config.json: model_type is {config['model_type']!r}, expected {MODEL_TYPE!r}")
    text = config["text_config"]
    if not isinstance(text, Mapping) or not isinstance(config["vision_config"], Mapping):
        raise ModelError("vlm/config.json: text_config and vision_config must be objects; copy the released file")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = (rope.get("rope_type"), rope.get("mrope_interleaved"), len(rope.get("mrope_section", ())))
    if kind != ("default", True, 3):
        raise ModelError(f"vlm/config.json: rotary settings {rope}; need type 'default', interleaved, 3 sections")
    layers = text.get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 2:
        raise ModelError(f"vlm/config.json: num_hidden_layers is {layers!r}, expected at least 2")
    return layers


def qwen_settings(config: Mapping[str, Any], where: str = "vlm/config.json") -> Any:
    """The library's configuration object; ModelError when a field has a type or value that it refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

    try:
        return Qwen3VLConfig(**config)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{where} is not a usable Qwen3-VL config: {error}; copy the released file") from error
