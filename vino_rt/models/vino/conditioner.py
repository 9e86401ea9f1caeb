"""The frozen VLM with the learnable queries behind the prompt: prompt, images and clip in, states out.

It wraps the layers of transformers' Qwen3-VL and stops after the last but one; it knows no connector, no transformer of
ours and no files but those of the VLM's directory. Letters: L text rows, Q queries, V visual rows, H width of a state.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vino_rt.errors import ModelError
from vino_rt.models.vino.config import read_json
from vino_rt.models.vino.prompt import (
    ProcessedInput,
    Processor,
    VisionIds,
    VlmInput,
    boundaries,
    position_ids,
)
from vino_rt.models.vino.vlm_config import TOKEN_FIELDS, check_config, qwen_settings

TEXT_PREFIX = "model.language_model."


@dataclass(frozen=True, eq=False)
class VlmStates:
    """States [L + Q, H] in the VLM's dtype, and the rows that bound each reference: images first, then the clip."""

    states: Tensor
    vision_start: tuple[int, ...]
    vision_end: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Embedded:
    """What enters the decoder layers: rows, their positions, and what deepstack adds to which rows after each layer."""

    rows: Tensor
    """[1, L + Q, H]"""
    positions: Tensor
    """int64 [3, L + Q]"""
    visual_index: Tensor
    """int64 [V]"""
    visual_out: tuple[Tensor, ...]
    """Output of each run of the vision tower, [V of that run, H]."""
    deepstack: tuple[Tensor, ...]
    """[V, H] for each of the first decoder layers."""


class VisionRotary(nn.Module):
    """Rotation table of the vision tower, with nothing stored that a change of the module's dtype could round."""

    def __init__(self, channels: int, theta: float, *, bf16: bool) -> None:
        super().__init__()
        self.channels, self.theta = channels, theta
        self.dtype = torch.bfloat16 if bf16 else torch.float32

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns [V, 2] -> cosines and sines [V, channels], all in bfloat16 for the release's quirk."""
        frequency = inverse_frequency(self.channels // 2, self.theta, x.device).to(self.dtype)
        angle = (position_ids[..., None].to(self.dtype) * frequency).flatten(1)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


def inverse_frequency(channels: int, theta: float, device: torch.device) -> Tensor:
    """float32 [channels / 2] rotary frequencies, falling from 1 towards 1 / theta."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    return 1.0 / theta**exponent


def text_rotary(positions: Tensor, channels: int, rope: Mapping[str, Any], *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Positions [3, L] -> float32 cosines and sines [1, L, channels] of the text tower.

    Frequencies go to t, h, w in turn until the shares of h and w are used up; the rest is t's. `bf16` rounds the
    frequencies as the released pipeline's cast does (spec section 3).
    """
    frequency = inverse_frequency(channels, rope["rope_theta"], positions.device)
    if bf16:
        frequency = frequency.bfloat16().float()
    axis = torch.zeros(channels // 2, dtype=torch.int64, device=positions.device)
    for number, share in enumerate(rope["mrope_section"][1:], start=1):
        axis[number : 3 * share : 3] = number
    angle = positions[axis].T.float() * frequency
    angle = torch.cat((angle, angle), dim=-1)[None]
    return angle.cos(), angle.sin()


class Conditioner(nn.Module):
    """Qwen3-VL up to its last layer but one, and the queries `metaquery` [Q, H]; sizes come from the VLM's config.json.

    Built without storage; `from_dir` gives it weights. The last layer, the final norm and the language head do not
    influence the states and do not exist here, unless `last_layer` keeps the first of them for comparisons.
    """

    def __init__(
        self, config: Mapping[str, Any], num_queries: int, *, rotary_bf16: bool = False, last_layer: bool = False
    ) -> None:
        super().__init__()
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

        self.depth = check_config(config) - 1
        own = copy.deepcopy(dict(config))
        own["text_config"]["num_hidden_layers"] = self.depth + int(last_layer)
        settings = qwen_settings(own)
        settings._attn_implementation = "sdpa"
        with torch.device("meta"):
            model = Qwen3VLModel(settings)
            self.metaquery = nn.Parameter(torch.empty(num_queries, settings.text_config.hidden_size))
        text, vision = settings.text_config, settings.vision_config
        self.embed_tokens, self.layers = model.language_model.embed_tokens, model.language_model.layers
        self.visual = model.visual
        self.visual.rotary_pos_emb = VisionRotary(
            vision.hidden_size // vision.num_heads, vision.rope_parameters["rope_theta"], bf16=rotary_bf16
        )
        self.rotary_bf16, self.rope, self.head_dim = rotary_bf16, dict(text.rope_parameters), int(text.head_dim)
        self.merge_size = int(vision.spatial_merge_size)
        self.vision_ids = VisionIds(*(config[name] for name in TOKEN_FIELDS))
        self.processor: Processor | None = None
        self.eval().requires_grad_(False)

    @classmethod
    def from_dir(
        cls,
        path: Path,
        metaquery: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        rotary_bf16: bool = False,
        last_layer: bool = False,
    ) -> "Conditioner":
        """Open a VLM directory with the queries [Q, H], weights in `dtype`.

        Rotary frequencies stay float32 whatever the dtype; `rotary_bf16` rounds them as the released bf16 pipeline did.
        Raises ModelError naming missing, unknown, misshapen or non-finite weights, and a tokenizer of another model.
        """
        module = cls(read_json(path / "config.json"), len(metaquery), rotary_bf16=rotary_bf16, last_layer=last_layer)
        module.processor = Processor.from_dir(path)
        ids, size = module.processor.tokenizer.vision, module.metaquery.shape
        if ids != module.vision_ids:
            raise ModelError(f"{path}: tokenizer.json has vision tokens {ids}, config.json {module.vision_ids}")
        if metaquery.shape != size:
            raise ModelError(f"metaquery has shape {tuple(metaquery.shape)}, the VLM needs {tuple(size)}")
        weights = read_weights(path, {k: v.shape for k, v in module.state_dict().items() if k != "metaquery"}, dtype)
        module.load_state_dict({**weights, "metaquery": metaquery.to(dtype)}, assign=True)
        return module.requires_grad_(False)

    def forward(self, given: VlmInput | ProcessedInput) -> VlmStates:
        """States of the whole sequence: template, visual rows, prompt, queries (spec section 3)."""
        processed = self.process(given)
        states = next(itertools.islice(self._layers(self._embed(processed)), self.depth, None))
        start, end = boundaries(processed.input_ids, self.vision_ids, len(processed.image_grids))
        # Without a clip the released rule repeats the last end; only pairs bound a reference.
        return VlmStates(states[0], start, end[: len(start)])

    def process(self, given: VlmInput | ProcessedInput) -> ProcessedInput:
        """Tokens and patch rows of the input; InputError for prompts or pixels that cannot be used."""
        if isinstance(given, ProcessedInput):
            return given
        assert self.processor is not None, "a conditioner made without from_dir takes processed input only"
        return self.processor(given)

    def trace(self, given: VlmInput | ProcessedInput) -> dict[str, Tensor]:
        """Every intermediate of `forward` by its golden name, without a batch dimension.

        `hidden_states.<i>` includes what deepstack adds; `visual_out.<i>` is one run of the vision tower, images first.
        """
        processed = self.process(given)
        embedded = self._embed(processed)
        states = [state[0] for state in self._layers(embedded)]
        mask = torch.zeros(len(states[0]), dtype=torch.uint8).index_fill(0, embedded.visual_index.cpu(), 1)
        return {
            "inputs_embeds": embedded.rows[0],
            "position_ids": embedded.positions,
            "visual_pos_masks": mask,
            "hidden_states_m2": states[self.depth],
            **{f"hidden_states.{i}": state for i, state in enumerate(states)},
            **{f"visual_out.{i}": rows for i, rows in enumerate(embedded.visual_out)},
            **{f"deepstack.{i}": rows for i, rows in enumerate(embedded.deepstack)},
        }

    def _embed(self, given: ProcessedInput) -> Embedded:
        ids = given.input_ids.cpu()
        positions = position_ids(
            ids, self.vision_ids, given.image_grids, given.video_grids, len(self.metaquery), self.merge_size
        )
        device = self.metaquery.device
        rows, indices, outs, deeps = self.embed_tokens(ids.to(device)), [], [], []
        for pixels, grids, pad in (
            (given.pixel_values, given.image_grids, self.vision_ids.image),
            (given.pixel_values_videos, given.video_grids, self.vision_ids.video),
        ):
            if pixels is None:
                continue
            indices.append(torch.nonzero(ids == pad).flatten().to(device))
            seen = self.visual(pixels.to(device, rows.dtype), grid_thw=torch.tensor(grids, device=device))
            outs.append(seen.pooler_output)
            deeps.append(seen.deepstack_features)
            rows = rows.index_copy(0, indices[-1], outs[-1])
        index = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64, device=device)
        deepstack = tuple(torch.cat(layer) for layer in zip(*deeps, strict=True))
        return Embedded(torch.cat((rows, self.metaquery))[None], positions.to(device), index, tuple(outs), deepstack)

    def _layers(self, embedded: Embedded) -> Iterator[Tensor]:
        """Yield the input of the first decoder layer, then the output of each, [1, L + Q, H], deepstack included."""
        hidden = embedded.rows
        cos, sin = text_rotary(embedded.positions, self.head_dim, self.rope, bf16=self.rotary_bf16)
        rotary = (cos.to(hidden.dtype), sin.to(hidden.dtype))
        yield hidden
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, position_embeddings=rotary)
            if number < len(embedded.deepstack):
                hidden = hidden.index_add(1, embedded.visual_index, embedded.deepstack[number][None])
            yield hidden


def read_weights(path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Read exactly the tensors named in `shapes` from a VLM directory, sharded or not, cast to `dtype`.

    The language head, the final norm and decoder layers past ours may lie there and are not read. Raises ModelError
    naming a missing shard and missing, unknown, misshapen or non-finite tensors.
    """
    wanted = {f"model.{n}" if n.startswith("visual.") else f"{TEXT_PREFIX}{n}": n for n in shapes}
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for shard in _shards(path):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a handle, not a mapping)
                    if name in wanted:
                        own = wanted[name]
                        found[own] = _checked(file.get_tensor(name), shapes[own], name).to(dtype)
                    elif not _unused(name, layers):
                        unknown.append(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {shard}: {error}; the VLM directory is incomplete or damaged") from error
    missing = sorted(name for name, own in wanted.items() if own not in found)
    if unknown or missing:
        raise ModelError(f"{path}: weights missing {missing}, unknown {sorted(unknown)}; they are of another config")
    return found


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return [path / "model.safetensors"]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(f"{index} has no weight_map; copy the file of the released model")
    return [path / name for name in sorted(set(names.values()))]


def _unused(name: str, layers: set[str]) -> bool:
    """Whether a tensor belongs to the parts behind our states."""
    if name.startswith(f"{TEXT_PREFIX}layers."):
        return name.removeprefix(TEXT_PREFIX).split(".")[1] not in layers
    return name in ("lm_head.weight", f"{TEXT_PREFIX}norm.weight")


def _checked(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    if tensor.shape != shape:
        raise ModelError(f"weight {name} has shape {tuple(tensor.shape)}, the config needs {tuple(shape)}")
    # The extremes carry every NaN and infinity, at memory speed and without a mask as large as the tensor.
    if not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise ModelError(f"weight {name} holds values that are not finite: the file is damaged")
    return tensor
