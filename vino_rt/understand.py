"""Captions and answers from a model's vision-language model, decoded greedily.

Prompt and pixels are prepared exactly as for generation. The whole VLM runs, with the last layer and the language head
that conditioning does not need, so the text is about what the transformer is conditioned on.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from vino_rt.errors import InputError, ModelError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.decoding import Decoder
from vino_rt.models.vino.prompt import ProcessedInput, Processor, VlmInput
from vino_rt.models.vino.tables import EMBEDDING, optional_names, vlm_table
from vino_rt.models.vino.vlm import Vlm
from vino_rt.progress import Progress, RequestMonitor
from vino_rt.request import Reference, Request
from vino_rt.sources import load_sources
from vino_rt.weights import compare_names

DESCRIBE_IMAGE, DESCRIBE_CLIP = "Describe the image.", "Describe the video."
"""Prompts used when the caller gives none."""
MAX_TOKENS = 256
"""Default for the most tokens of an answer."""
MOST_TOKENS = 4096
"""Most tokens of an answer that a caller may ask for."""
BATCH = 32
"""Default for the most prompts decoded together."""


class Captioner:
    """A whole vision-language model with its tokenizer and its image preprocessing."""

    def __init__(self, vlm: Vlm, processor: Processor, model: ModelDir) -> None:
        """Use a VLM that has its weights; `Captioner.open` is the usual way in."""
        self.vlm, self.processor, self.model = vlm, processor, model

    @classmethod
    def open(cls, model: ModelDir, dtype: torch.dtype = torch.float32) -> Self:
        """Load the VLM of a model directory with weights of `dtype`; ModelError names what is wrong with it."""
        return cls(load_vlm(model, dtype).eval().requires_grad_(False), Processor.from_dir(model.path / "vlm"), model)

    def understand(
        self,
        references: Sequence[Reference],
        prompt: str | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        on_step: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> str:
        """Answer a prompt about images and at most one video, or describe them if there is no prompt.

        on_step: called in this thread with every layer that read the prompt and every token of the answer. cancel: set
        it to end the call within one of them. Raises MediaError or InputError for a reference that cannot be used,
        InputError without references, Cancelled.
        """
        if not references:
            raise InputError("nothing to look at; give at least one image or video")
        if prompt is None:
            prompt = DESCRIBE_CLIP if any(r.kind == "video" for r in references) else DESCRIBE_IMAGE
        monitor = RequestMonitor.of(on_step, cancel)
        monitor.check()
        sources = load_sources(Request(prompt=prompt, references=tuple(references)), self.model.settings)
        given = VlmInput(prompt, sources.images, sources.vlm_frames)
        return self.describe_many([given], max_tokens=max_tokens, monitor=monitor)[0]

    def describe_many(
        self,
        inputs: Sequence[VlmInput | ProcessedInput],
        *,
        max_tokens: int = MAX_TOKENS,
        batch: int = BATCH,
        monitor: RequestMonitor | None = None,
    ) -> list[str]:
        """Answer each prompt, `batch` prompts at a time; greedy decoding, so the result is deterministic.

        max_tokens: most tokens of an answer, 1 to MOST_TOKENS, else InputError. monitor: told of each batch by itself,
        as `understand` says.
        """
        if not 1 <= max_tokens <= MOST_TOKENS:
            raise InputError(f"max_tokens is {max_tokens}; legal are 1 to {MOST_TOKENS}")
        ready = [each if isinstance(each, ProcessedInput) else self.processor(each) for each in inputs]
        # Prompts of similar length share a batch, which keeps padding small.
        order = sorted(range(len(ready)), key=lambda number: len(ready[number].input_ids))
        said: dict[int, str] = {}
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            texts = self._generate([ready[number] for number in members], max_tokens, monitor or RequestMonitor())
            said.update(zip(members, texts, strict=True))
        return [said[number] for number in range(len(ready))]

    @torch.inference_mode()
    def _generate(self, inputs: Sequence[ProcessedInput], max_tokens: int, monitor: RequestMonitor) -> list[str]:
        end, pad = self._stops()
        decoder, said = Decoder(self.vlm, inputs, monitor.reporter("read")), list[Tensor]()
        going = torch.ones(len(inputs), dtype=torch.bool)
        while True:
            tokens = decoder.logits.argmax(-1)
            said.append(torch.where(going, tokens.cpu(), pad))
            monitor.report("answer", len(said), max_tokens)
            going &= (said[-1] != end) & (said[-1] != pad)
            if len(said) == max_tokens or not going.any():
                return [self.processor.tokenizer.decode(row).strip() for row in torch.stack(said, dim=1).tolist()]
            decoder.step(tokens)

    def _stops(self) -> tuple[int, int]:
        """Token ids of the end of a turn and of the end of text; ModelError if the config lacks one."""
        text = self.model.vlm["text_config"]
        names = ("eos_token_id", "bos_token_id")
        if any(not isinstance(text.get(name), int) for name in names):
            found = {name: text.get(name) for name in names}
            raise ModelError(f"{self.model.path}/vlm/config.json: text_config has {found}; both must be token ids")
        return text["eos_token_id"], text["bos_token_id"]


def load_vlm(model: ModelDir, dtype: torch.dtype = torch.float32) -> Vlm:
    """Load the whole VLM of a model directory with weights of `dtype`.

    Raises ModelError if its config is not a Qwen3-VL's or weights are missing, unknown or misshapen.
    """
    where = str(model.path / "vlm")
    table, part = vlm_table(model.vlm, f"{where}/config.json"), model.part("vlm")
    optional = optional_names(model.vlm)
    compare_names({name: part.shape(name) for name in part.names()}, table, where, optional)
    weights = part.load(part.names(), dtype)
    with torch.device("meta"):
        vlm = Vlm(model.vlm_config, tie=bool(optional))
    # A language head tied to the embedding may be missing from the file; it becomes the same tensor either way.
    vlm.load_state_dict({name: weights.get(name, weights[EMBEDDING]) for name in table}, assign=True)
    vlm.tie_weights()
    return vlm
