"""The vision-language model's config.json: its sizes, and whether we can run this Qwen3-VL; knows no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vino_rt.errors import ModelError
from vino_rt.models.vino.layers import NORM_EPS

MODEL_TYPE = "qwen3_vl"
WHERE = "vlm/config.json"
TOKEN_FIELDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
VISION_THETA = 10000.0
"""Default for configs that state none, such as the released one."""
FIXED: Mapping[str, Mapping[str, Any]] = {
    "text_config": {"hidden_act": "silu", "attention_bias": False, "rms_norm_eps": NORM_EPS},
    "vision_config": {"hidden_act": "gelu_pytorch_tanh"},
}
"""Settings that our layers have built in; a config with other values is refused."""


@dataclass(frozen=True)
class VisionIds:
    """Ids of the tokens that mark pictures and clips in a prompt."""

    start: int
    end: int
    image: int
    video: int


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the text tower; fields are those of `text_config`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Number of rotary frequencies for t, h and w."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower; fields are those of `vision_config`."""

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int
    rope_theta: float
    deepstack_visual_indexes: tuple[int, ...]
    """Vision blocks whose output is added after the first decoder layers, in order."""


@dataclass(frozen=True, kw_only=True)
class VlmConfig:
    """The fields of a Qwen3-VL's config.json that we use."""

    text: TextConfig
    vision: VisionConfig
    ids: VisionIds

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = WHERE) -> Self:
        """Read a parsed config.json; ModelError names what is missing, wrong or unsupported; `where` names the file."""
        if missing := [name for name in (*FIXED, *TOKEN_FIELDS) if name not in config]:
            raise ModelError(f"{where} lacks {missing}: not the config of a Qwen3-VL")
        if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ModelError(f"{where}: model_type is {config['model_type']!r}, expected {MODEL_TYPE!r}")
        text, vision = config["text_config"], config["vision_config"]
        if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
            raise ModelError(f"{where}: text_config and vision_config must be objects; copy the released file")
        for name, fixed in FIXED.items():
            other = {key: config[name][key] for key, value in fixed.items() if config[name].get(key, value) != value}
            if other:
                raise ModelError(f"{where}: {name} has {other}; this model is run with {dict(fixed)} alone")
        ids = VisionIds(*(_whole(config, name, where) for name in TOKEN_FIELDS))
        found = cls(text=_text(text, where), vision=_vision(vision, where), ids=ids)
        if found.vision.out_hidden_size != found.text.hidden_size:
            sizes = found.vision.out_hidden_size, found.text.hidden_size
            raise ModelError(f"{where}: vision out_hidden_size and text hidden_size are {sizes}; they must be equal")
        return found


def _text(text: Mapping[str, Any], where: str) -> TextConfig:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    sections = rope.get("mrope_section", ())
    kind = (rope.get("rope_type"), rope.get("mrope_interleaved"), len(sections))
    if kind != ("default", True, 3):
        raise ModelError(f"{where}: rotary settings {rope}; need type 'default', interleaved, 3 sections")
    sizes = _sizes(text, TextConfig, where)
    if sizes["num_hidden_layers"] < 2:
        raise ModelError(f"{where}: num_hidden_layers is {sizes['num_hidden_layers']}, expected at least 2")
    if 2 * sum(sections) != sizes["head_dim"] or sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise ModelError(
            f"{where}: twice the sum of mrope_section {sections} must be head_dim, and num_attention_heads a multiple "
            f"of num_key_value_heads; found {sizes}"
        )
    theta = _theta(rope.get("rope_theta", text.get("rope_theta")), where)
    return TextConfig(**sizes, rope_theta=theta, mrope_section=tuple(sections))


def _vision(vision: Mapping[str, Any], where: str) -> VisionConfig:
    sizes = _sizes(vision, VisionConfig, where)
    indexes = vision.get("deepstack_visual_indexes")
    if not isinstance(indexes, list) or not set(indexes) <= set(range(sizes["depth"])):
        raise ModelError(f"{where}: deepstack_visual_indexes is {indexes}, expected numbers of the vision blocks")
    if (
        sizes["hidden_size"] % (4 * sizes["num_heads"])
        or round(sizes["num_position_embeddings"] ** 0.5) ** 2 != (sizes["num_position_embeddings"])
    ):
        raise ModelError(
            f"{where}: vision hidden_size must be a multiple of 4 * num_heads and num_position_embeddings a square; "
            f"found {sizes}"
        )
    theta = _theta((vision.get("rope_parameters") or {}).get("rope_theta", VISION_THETA), where)
    return VisionConfig(**sizes, rope_theta=theta, deepstack_visual_indexes=tuple(indexes))


def _sizes(given: Mapping[str, Any], owner: type[Any], where: str) -> dict[str, int]:
    """Every field of the dataclass `owner` that is a whole number; ModelError for one that is missing or below 1."""
    return {name: _whole(given, name, where) for name, kind in owner.__annotations__.items() if kind is int}


def _whole(given: Mapping[str, Any], name: str, where: str) -> int:
    value = given.get(name)
    if type(value) is not int or value < 1:
        raise ModelError(f"{where}: {name} is {value!r}, expected a whole number above 0; copy the released file")
    return value


def _theta(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 1:
        raise ModelError(f"{where}: rope_theta is {value!r}, expected a number above 1; copy the released file")
    return float(value)
