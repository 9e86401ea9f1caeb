"""The frozen VLM with the learnable queries appended to the prompt: prompts, images and clips in, states out.

It stops after the last layer but one (MODEL.md section 3). Its layers may be our modules or engines. It knows no
connector, no MMDiT, and no files but those of the VLM's directory. Letters: L text rows, Q queries, H width of a state.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vino_rt.backends.base import Engine
from vino_rt.cache import ContentCache, digest
from vino_rt.config import read_json
from vino_rt.errors import ModelError
from vino_rt.models.vino.layers import embedding
from vino_rt.models.vino.prefill import Embedded, VlmStates, embed, run_layers
from vino_rt.models.vino.prepare import Grid
from vino_rt.models.vino.prompt import ProcessedInput, Processor, VlmInput, boundaries
from vino_rt.models.vino.vlm import VlmParts
from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.models.vino.vlm_kinds import BLOCK, LAYER
from vino_rt.models.vino.vlm_text import DecoderLayer
from vino_rt.models.vino.vlm_vision import VisionTower, Visual
from vino_rt.weights import PartWeights, compare_names

TEXT_PREFIX = "model.language_model."


class EngineModule(nn.Module):
    """An engine as a drop-in for its reference module: the same inputs in the same order; holds no parameters."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._names = tuple(spec.name for spec in engine.spec.inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The engine's output, in its own dtype; inputs are converted to what it takes."""
        (out,) = self._engine.run(**self._engine.fit(**dict(zip(self._names, inputs, strict=True))))
        return out


class Conditioner(nn.Module):
    """Qwen3-VL up to its last layer but one, and the queries `metaquery` [Q, H] (MODEL.md section 3).

    Sizes come from the VLM's config.json. Built on the meta device; `from_dir` loads weights. The last layer, the final
    norm and the language head do not influence the states and are left out; `last_layer` keeps that layer, for
    comparisons.
    """

    def __init__(
        self, config: Mapping[str, Any], num_queries: int, *, rotary_bf16: bool = False, last_layer: bool = False
    ) -> None:
        super().__init__()
        self.config = VlmConfig.from_json(config)
        text = self.config.text
        self.depth = text.num_hidden_layers - 1
        self.rotary_bf16 = rotary_bf16
        self.vision_ids, self.merge_size = self.config.ids, self.config.vision.spatial_merge_size
        with torch.device("meta"):
            self.metaquery = nn.Parameter(torch.empty(num_queries, text.hidden_size))
            self.embed_tokens = embedding(text.vocab_size, text.hidden_size)
            self.layers = nn.ModuleList(DecoderLayer(text) for _ in range(self.depth + int(last_layer)))
            self.visual = VisionTower(self.config.vision, rotary_bf16=rotary_bf16)
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
        engines: Mapping[str, Sequence[Engine]] | None = None,
    ) -> "Conditioner":
        """Open a VLM directory, with weights in `dtype` and the queries [Q, H].

        engines: those of kinds `LAYER` and `BLOCK`, which hold their own weights; the embeddings and mergers, which
        are cheap, stay with PyTorch. rotary_bf16: round the rotary frequencies as the released bf16 pipeline does;
        otherwise they are float32 whatever the dtype. Raises ModelError naming missing, unknown, misshapen or
        non-finite weights, or a tokenizer of another model.
        """
        module = cls(read_json(path / "config.json"), len(metaquery), rotary_bf16=rotary_bf16, last_layer=last_layer)
        module.processor = Processor.from_dir(path)
        ids, size = module.processor.tokenizer.vision, module.metaquery.shape
        if ids != module.vision_ids:
            raise ModelError(f"{path}: tokenizer.json has vision tokens {ids}, config.json {module.vision_ids}")
        if metaquery.shape != size:
            raise ModelError(f"metaquery has shape {tuple(metaquery.shape)}, the VLM needs {tuple(size)}")
        weights = _checked_weights(path, module)
        if engines is not None:
            module.layers = nn.ModuleList(map(EngineModule, engines[LAYER]))
            module.visual.blocks = nn.ModuleList(map(EngineModule, engines[BLOCK]))
        names = {_stored_name(name): name for name in module.state_dict() if name != "metaquery"}
        loaded = {names[name]: tensor for name, tensor in weights.load(names, dtype).items()}
        module.load_state_dict({**loaded, "metaquery": metaquery.to(dtype)}, assign=True)
        return module.requires_grad_(False)

    @property
    def parts(self) -> VlmParts:
        """The modules that prompts are run through."""
        return VlmParts(self.config, self.embed_tokens, tuple(self.layers), self.visual, self.rotary_bf16)

    @property
    def parts_of_prefill(self) -> int:
        """Parts that `prefill` reports: the prompts embedded, pictures included, then each decoder layer."""
        return 1 + self.depth

    def forward(self, given: VlmInput | ProcessedInput) -> VlmStates:
        """States of the whole sequence: template, visual rows, prompt, queries (MODEL.md section 3)."""
        return self.prefill([given])[0]

    def prefill(
        self,
        inputs: Sequence[VlmInput | ProcessedInput],
        cache: ContentCache | None = None,
        *,
        on_part: Callable[[int], None] = lambda done: None,
    ) -> list[VlmStates]:
        """The states of each input; all inputs run through the decoder layers packed into one call.

        on_part: called with how many of `parts_of_prefill` are done, after each; what it raises ends the call.

        Inputs with the same pictures or clip share one run of the vision tower, whose output `cache` keeps for later
        calls.
        """
        processed = [self.process(given) for given in inputs]
        see = self._seer(cache or ContentCache(0))
        prompts = [embed(self.parts, given, self.metaquery, see) for given in processed]
        for done, rows in enumerate(itertools.islice(run_layers(self.parts, prompts), self.parts_of_prefill), start=1):
            on_part(done)
            hidden = rows
        found = []
        apart = torch.split(hidden, [len(prompt.rows) for prompt in prompts])
        for given, states in zip(processed, apart, strict=True):
            start, end = boundaries(given.input_ids, self.vision_ids, len(given.image_grids))
            # Without a clip the released rule repeats the last end token; only (start, end) pairs bound a reference.
            found.append(VlmStates(states, start, end[: len(start)]))
        return found

    def process(self, given: VlmInput | ProcessedInput) -> ProcessedInput:
        """Tokenize a prompt and cut its pixels into patch rows; InputError for an unusable prompt or pixels."""
        if isinstance(given, ProcessedInput):
            return given
        assert self.processor is not None, "a conditioner made without from_dir takes processed input only"
        return self.processor(given)

    def embed(self, given: VlmInput | ProcessedInput) -> Embedded:
        """The rows of an input as they enter the decoder layers."""
        return embed(self.parts, self.process(given), self.metaquery, self._seer(ContentCache(0)))

    def _seer(self, cache: ContentCache) -> Callable[[Tensor, Sequence[Grid]], Visual]:
        """The vision tower, run at most once per distinct set of patches."""
        found: dict[bytes, Visual] = {}

        def see(pixels: Tensor, grids: Sequence[Grid]) -> Visual:
            key = digest((pixels, tuple(grids)))
            if key not in found:
                device = self.metaquery.device
                found[key] = cache.get(("visual", key.hex()), lambda: self.visual(pixels.to(device), grids))
            return found[key]

        return see


def _checked_weights(path: Path, module: Conditioner) -> PartWeights:
    """The weights of a VLM directory; ModelError unless names and shapes are the module's.

    The language head, the final norm and decoder layers beyond ours may be there; they are not read.
    """
    weights = PartWeights(path)
    expected = {_stored_name(name): tuple(t.shape) for name, t in module.state_dict().items() if name != "metaquery"}
    given = {name: weights.shape(name) for name in weights.names() if not _unused(name, len(module.layers))}
    compare_names(given, expected, str(path))
    return weights


def _stored_name(name: str) -> str:
    return f"model.{name}" if name.startswith("visual.") else f"{TEXT_PREFIX}{name}"


def _unused(name: str, layers: int) -> bool:
    """Whether a tensor belongs to a part of the VLM that runs after our states are taken."""
    if name.startswith(f"{TEXT_PREFIX}layers."):
        number = name.removeprefix(TEXT_PREFIX).split(".")[1]
        return number.isdecimal() and int(number) >= layers
    return name in ("lm_head.weight", f"{TEXT_PREFIX}norm.weight")
