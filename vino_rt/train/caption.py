"""The objective `caption`: the whole vision-language model learns to say what it sees and what instructions lead to.

Next-token loss on the answers and, with a small weight, on the words of the prompts: the transformer is conditioned on
the states of prompts, so these must learn language too. Afterwards the model is frozen. It knows no transformer of ours
and no autoencoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.backends.base import PRECISIONS
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prompt import ProcessedInput, Processor, frame_grids, render, visual_tokens
from vino_rt.models.vino.tables import optional_names
from vino_rt.models.vino.vlm import Vlm, VlmParts
from vino_rt.models.vino.vlm_vision import Visual
from vino_rt.request import Pixels
from vino_rt.train.caption_sheet import caption_sheet
from vino_rt.train.export import Precision, export_model
from vino_rt.train.lessons import Lesson, Lessons
from vino_rt.train.objective import Loss
from vino_rt.train.probe import Centres, Probe, clip_centres, picture_centres
from vino_rt.train.settings import positive, take_table
from vino_rt.train.vlm_batch import VlmBatch, collate, run_layers, see
from vino_rt.understand import Captioner, load_vlm

WHERE = "[settings]"
TAIL = render("\0").split("\0")[1]
"""What follows every prompt; the answer comes behind it."""


@dataclass(frozen=True)
class CaptionTable:
    """The table `[settings]` of a stage with objective `caption`."""

    prompt: float = 0.1
    """Weight of the words of prompts against those of answers."""
    probe: float = 1.0
    """Weight of the probe of the vision tower; 0: off."""
    speak: bool = True
    """Whether the decoder runs; without it the vision tower learns alone, from the probe: shapes come far sooner."""
    chunks: int = 2
    """Parts that a micro-batch is run in, neighbours in length together, so that less of it is padding."""
    export: Precision = "bfloat16"

    def __post_init__(self) -> None:
        positive(self.chunks, "chunks", WHERE)
        for name in ("prompt", "probe"):
            if getattr(self, name) < 0:
                raise UsageError(f"{WHERE}: {name} is {getattr(self, name)}, expected a weight of at least 0")
        if not self.speak and not self.probe:
            raise UsageError(f"{WHERE}: probe is 0 and speak is false, which leaves nothing to learn; set one of them")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Lessons of like length, and where their next tokens are known."""

    inputs: VlmBatch
    rows: Tensor
    """int64 [N], rows of the flat [B * R]"""
    labels: Tensor
    """int64 [N], the token behind each"""
    spoken: Tensor
    """bool [N], whether that token belongs to an answer"""
    centres: Centres
    """What the visual tokens show: pictures, then clips."""

    def to(self, device: torch.device) -> "Chunk":
        """A copy on a device."""
        rows, labels, spoken = (tensor.to(device) for tensor in (self.rows, self.labels, self.spoken))
        return Chunk(self.inputs.to(device), rows, labels, spoken, self.centres.to(device))


@dataclass(frozen=True, eq=False)
class CaptionBatch:
    """A micro-batch."""

    chunks: tuple[Chunk, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Taught:
    """A lesson as tokens and patch rows: the prompt with the answer behind it."""

    inputs: ProcessedInput
    words: int
    """Tokens of the prompt's own words."""
    answer: int
    """Tokens of the answer, its end included."""
    centres: list[Centres]
    """One entry for each picture, then one for the clip."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What a VLM makes of a chunk."""

    nats: Tensor
    """Cross entropy of each of N known next tokens, float32 [N]; zeros of a VLM that does not speak"""
    right: Tensor
    """bool [N], whether that token was the likeliest"""
    probed: Tensor
    """Loss of `Probe` for each visual token, float32 [V]"""
    named: Tensor
    """bool [things], whether the shape of what has its centre in a token was the likeliest"""


class Speaker(nn.Module):
    """A whole VLM whose forward is the loss of a chunk, so that whoever shards it sees one call."""

    def __init__(self, vlm: Vlm, *, speak: bool = True) -> None:
        super().__init__()
        self.vlm = vlm.requires_grad_(speak)
        self._speak = speak
        vlm.model.visual.requires_grad_(True)
        self._parts = VlmParts.of_whole(vlm)
        layers = 1 + len(vlm.config.vision.deepstack_visual_indexes)
        self.probe = Probe(layers * vlm.config.text.hidden_size)

    def forward(self, chunk: Chunk) -> Heard:
        """What is said of a chunk and seen in it."""
        seen = see(self._parts, chunk.inputs)
        nats, right = self._say(chunk, seen)
        rows = [torch.cat((out, *deep), dim=-1) for out, deep in seen]
        if not rows:
            return Heard(nats, right, nats.new_zeros(0), right[:0])
        probed, named = self.probe(torch.cat(rows), chunk.centres)
        return Heard(nats, right, probed, named)

    def _say(self, chunk: Chunk, seen: list[Visual]) -> tuple[Tensor, Tensor]:
        if not self._speak:
            silence = torch.zeros(len(chunk.labels), device=chunk.labels.device)
            return silence, silence.bool()
        hidden = run_layers(self._parts, chunk.inputs, seen=seen).flatten(0, 1)[chunk.rows]
        logits = self.vlm.logits(hidden).float()
        return F.cross_entropy(logits, chunk.labels, reduction="none"), logits.argmax(-1) == chunk.labels


class CaptionObjective:
    """See the module; built by `open_objective`."""

    def __init__(self, model: ModelDir, data: Mapping[str, Any], table: Mapping[str, Any], seed: int) -> None:
        """`data` is the stage's table of lessons, `table` its settings.

        Raises UsageError for an entry of the tables that cannot be used, ModelError for a VLM that cannot.
        """
        self.directory = model
        self.table = take_table(table, CaptionTable, WHERE)
        self.lessons = Lessons(data, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Speaker(load_vlm(model, torch.float32), speak=self.table.speak)
        self.processor = Processor.from_dir(model.path / "vlm")
        self._end = int(model.vlm["text_config"]["eos_token_id"])
        self._merge = model.vlm_config.vision.spatial_merge_size

    def batch(self, index: int) -> CaptionBatch:
        """The lessons of a micro-batch as tokens and patch rows."""
        lessons = self.lessons.batch(index)
        taught = sorted(map(self._taught, lessons), key=lambda each: len(each.inputs.input_ids))
        size = -(-len(taught) // self.table.chunks)
        chunks = tuple(self._chunk(taught[start : start + size]) for start in range(0, len(taught), size))
        return CaptionBatch(chunks, tuple(lesson.key for lesson in lessons))

    def loss(self, batch: CaptionBatch, index: int) -> Loss:
        """Mean over the tokens of answers, plus the weighted means over those of prompts and over what the probe reads.

        Nothing in it is random. Parts are the means in nats, the share of answers' tokens that were the likeliest
        (`right`) and the share of things whose shape the probe names (`shape`); those of a VLM that does not speak are
        the probe's alone.
        """
        device = next(self.model.parameters()).device
        chunks = [chunk.to(device) for chunk in batch.chunks]
        heard = [self.model(chunk) for chunk in chunks]
        nats, right, probed, named = (
            torch.cat([getattr(each, field.name) for each in heard]) for field in fields(Heard)
        )
        spoken = torch.cat([chunk.spoken for chunk in chunks])
        answer = nats[spoken].mean()
        prompt = nats[~spoken].sum() / (~spoken).sum().clamp(min=1)
        probe = probed.sum() / max(1, len(probed))
        value = answer + self.table.prompt * prompt + self.table.probe * probe
        parts = {"probe": probe.item(), "shape": named.sum().item() / max(1, len(named))}
        if self.table.speak:
            parts |= {"answer": answer.item(), "prompt": prompt.item(), "right": right[spoken].float().mean().item()}
        return Loss(value, parts)

    def shards(self) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(self.model.vlm.model.language_model.layers)

    def sheet(self) -> Pixels:
        """Held-out lessons with what the model says to them: uint8 [H, W, 3]."""
        return caption_sheet(self.captioner(), self.lessons)

    def captioner(self) -> Captioner:
        """The model as it is now, ready to speak."""
        return Captioner(self.model.vlm, self.processor, self.directory)

    def export(self, out: Path) -> None:
        """Write the model directory with this VLM; all other parts and files are copied."""
        left_out = optional_names(self.directory.vlm)
        tensors = {name: value for name, value in self.model.vlm.state_dict().items() if name not in left_out}
        export_model(self.directory, out, {"vlm": tensors}, dtype=PRECISIONS[self.table.export])

    def _taught(self, lesson: Lesson) -> _Taught:
        """Prompt and answer as one input."""
        asked, tokenizer = self.processor(lesson.given), self.processor.tokenizer
        answer = torch.cat((tokenizer.tokenize(lesson.answer), torch.tensor([self._end])))
        counts = visual_tokens(asked.image_grids, self._merge)
        groups = visual_tokens(frame_grids(asked.video_grids), self._merge)
        words = len(asked.input_ids) - len(tokenizer.encode("", counts, groups))
        grids, example = (*asked.image_grids, *asked.video_grids), lesson.example
        centres = [
            picture_centres(scene, grid, self._merge)
            for scene, grid in zip(lesson.pictures, asked.image_grids, strict=True)
        ]
        if lesson.clip is not None:
            centres.append(clip_centres(lesson.clip, example.frames, example.fps, grids[-1], self._merge))
        whole = replace(asked, input_ids=torch.cat((asked.input_ids, answer)))
        return _Taught(whole, words, len(answer), centres)

    def _chunk(self, taught: Sequence[_Taught]) -> Chunk:
        tail = len(self.processor.tokenizer.tokenize(TAIL))
        inputs = collate([each.inputs for each in taught], self.processor.tokenizer.vision, merge_size=self._merge)
        width = inputs.input_ids.shape[1]
        rows, labels, spoken = [], [], []
        for row, each in enumerate(taught):
            length = len(each.inputs.input_ids)
            end = length - each.answer - tail
            known = torch.cat((torch.arange(end - each.words, end), torch.arange(length - each.answer, length)))
            rows.append(row * width + known - 1)
            labels.append(each.inputs.input_ids[known])
            spoken.append(known >= length - each.answer)
        # In the order of the batch's patches: all pictures, then all clips.
        pictures = [part for each in taught for part in each.centres[: len(each.inputs.image_grids)]]
        clips = [part for each in taught for part in each.centres[len(each.inputs.image_grids) :]]
        centres = Centres.cat([*pictures, *clips])
        return Chunk(inputs, torch.cat(rows), torch.cat(labels), torch.cat(spoken), centres)
