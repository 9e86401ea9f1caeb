"""Complete model directories with random weights: sizes from `presets/NAME.json`, weights from a seed.

Until it is trained such a model generates noise, but everything from prompt to file can be run with it.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.model_draft import Draft, new_model_dir
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.preset_tokenizer import token_ids, train_tokenizer
from vino_rt.models.vino.tables import Table, connector_table, optional_names, transformer_table, vae_table, vlm_table
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.weight_writer import write_part
from vino_rt.weights import TensorInfo

PRESETS = ("mini",)
DTYPE = torch.bfloat16
VECTOR_STD = 0.02
"""Standard deviation of biases (around 0) and norm weights (around 1): leaving one out changes results noticeably."""
EMBEDDINGS = ("embed_tokens.weight", "pos_embed.weight", "metaquery")
GAINS = {
    # Gates of the blocks: with a gain of 1 they are near zero, and a picture hardly depends on its prompt.
    "norm.linear.weight": 2.0, "norm1.linear.weight": 2.0, "norm1_context.linear.weight": 2.0,
    # Pixels: the last convolution decides how much of [-1, 1] a random picture covers.
    "decoder.conv_out.conv.weight": 0.8,
}  # fmt: skip


def init_preset(name: str, out: Path, *, seed: int = 0, overwrite: bool = False) -> ModelDir:
    """Write the model directory of a preset with random weights and open it; the same seed gives the same bytes.

    Raises UsageError for an unknown preset or a negative seed, OutputError when `out` exists (with `overwrite`: and is
    no model directory) or cannot be written.
    """
    if name not in PRESETS:
        raise UsageError(f"preset is {name!r}; choose one of {', '.join(PRESETS)}")
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be 0 or above")
    data = json.loads((Path(__file__).parent / "presets" / f"{name}.json").read_text(encoding="utf-8"))
    return write_preset(data, out, seed=seed, overwrite=overwrite)


def write_preset(data: dict[str, Any], out: Path, *, seed: int, overwrite: bool = False) -> ModelDir:
    """`init_preset` for other sizes: `data` is the content of a file like those in `presets`."""
    vocab_size = data["vlm"]["text_config"]["vocab_size"]
    vlm = with_token_ids(data["vlm"], token_ids(vocab_size))
    settings = ModelSettings.from_json(data["settings"], "preset")
    with new_model_dir(out, settings, overwrite=overwrite) as draft:
        for part, table in _tables({**data, "vlm": vlm}).items():
            draft.write_json(part, "config.json", vlm if part == "vlm" else data[part])
            infos = [TensorInfo(tensor, DTYPE, shape) for tensor, shape in table.items()]
            draft.add(part, write_part(draft.part(part), infos, random_tensors(part, table, seed)))
        _write_processors(data, train_tokenizer(vocab_size), draft)
    return ModelDir.open(out)


def with_token_ids(vlm: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """A VLM config with its special token ids: begin and end go into `text_config`, the others to the top level."""
    inner = {name: ids[name] for name in ("bos_token_id", "eos_token_id")}
    outer = {name: value for name, value in ids.items() if name not in inner}
    return {**vlm, **outer, "text_config": {**vlm["text_config"], **inner}}


def random_tensors(part: str, table: Table, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a part's weights in the table's order, as `DTYPE`; each depends on the seed, its name and shape alone."""
    for name, shape in table.items():
        yield name, random_tensor(name, shape, [seed, zlib.crc32(f"{part}/{name}".encode())])


def random_tensor(name: str, shape: tuple[int, ...], entropy: list[int]) -> Tensor:
    """Uniform values with variance 1/fan_in for matrices and kernels, so that activations keep their scale.

    Computed from the generator's raw bits, which numpy guarantees to be stable, so the values are the same everywhere.
    """
    raw = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(math.prod(shape))
    unit = (np.asarray(raw >> np.uint64(40), dtype=np.float64) * 2.0**-23 - 1.0) * math.sqrt(3)
    if len(shape) > 1:
        fan_in = shape[1] if name.endswith(EMBEDDINGS) else math.prod(shape[1:])
        gain = next((gain for suffix, gain in GAINS.items() if name.endswith(suffix)), 1.0)
        values = unit * (gain / math.sqrt(fan_in))
    else:
        values = unit * VECTOR_STD + float(name.endswith("weight"))
    return torch.from_numpy(values.reshape(shape)).to(DTYPE)


def _tables(data: dict[str, Any]) -> dict[str, Table]:
    vlm = vlm_table(data["vlm"])
    return {
        "transformer": transformer_table(TransformerConfig.from_json(data["transformer"])),
        "connector": connector_table(ConnectorConfig.from_json(data["connector"])),
        "vae": vae_table(VaeConfig.from_json(data["vae"])),
        "vlm": {name: shape for name, shape in vlm.items() if name not in optional_names(data["vlm"])},
    }


def _write_processors(data: dict[str, Any], tokenizer: dict[str, object], draft: Draft) -> None:
    draft.write_bytes("vlm", "tokenizer.json", str(tokenizer["tokenizer.json"]).encode())
    draft.write_json("vlm", "tokenizer_config.json", tokenizer["tokenizer_config.json"])
    draft.write_json("vlm", "preprocessor_config.json", data["image_processor"])
    draft.write_json("vlm", "video_preprocessor_config.json", data["video_processor"])
