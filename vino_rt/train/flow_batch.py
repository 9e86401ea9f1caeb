"""Samples turned into what the flow objective computes with: processed prompts and latents, encoded once and kept.

It knows the processor and the autoencoder, not the transformer, and no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vino_rt.decode import encode_video, posterior
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.patches import patch_grid, patchify
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.prompt import ProcessedInput, Processor, VlmInput, frame_grids, visual_tokens
from vino_rt.models.vino.vlm_config import VisionIds
from vino_rt.plan import Grid
from vino_rt.request import Pixels
from vino_rt.tiling import Tiling
from vino_rt.train.flow_model import FlowInputs
from vino_rt.train.latents import LatentStore
from vino_rt.train.sample import Sample
from vino_rt.train.vlm_batch import collate


@dataclass(frozen=True, eq=False)
class Rows:
    """Latents of one picture or clip as patches [N, P], scaled as the transformer sees them, and their grid."""

    patches: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample ready for the loss once its pixels are encoded; first the target's, then each reference's."""

    key: str
    task: str
    prompt: ProcessedInput
    unprompted: Tensor
    """int64 [L']: token ids of an empty prompt with the same references."""
    pixels: tuple[Pixels, ...]
    """uint8 [F, H, W, 3] each; empty when encoded."""
    latents: tuple[Rows, ...] = ()


class Preparer:
    """Samples to `Prepared`, with the processor of a model directory."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.nothing = processor(VlmInput(""))
        """An empty prompt without references."""

    def __call__(self, sample: Sample) -> Prepared:
        """Tokens and patch rows of a sample; InputError when the processor refuses its caption or pixels."""
        prompt = self.processor(VlmInput(sample.caption, sample.images, sample.vlm_frames))
        merge = self.processor.config.image.merge_size
        images = visual_tokens(prompt.image_grids, merge)
        groups = visual_tokens(frame_grids(prompt.video_grids), merge)
        clips = (sample.target, *(image[None] for image in sample.images))
        return Prepared(
            key=sample.key,
            task=sample.task,
            prompt=_halved(prompt),
            unprompted=self.processor.tokenizer.encode("", images, groups),
            pixels=clips if sample.video is None else (*clips, sample.video),
        )


class Encoder:
    """Pixels to scaled latent patches; one clip at a time, so that a latent does not depend on its neighbours."""

    def __init__(
        self, vae: nn.Module, scale: float, config: TransformerConfig, store: LatentStore | None = None
    ) -> None:
        """`store` keeps what was encoded beyond this process."""
        self.vae, self.scale, self.config, self.store = vae, scale, config, store

    @torch.no_grad()
    def __call__(self, clip: Pixels) -> Rows:
        """uint8 [F, H, W, 3] -> the posterior's mode, as the runtime encodes references."""
        device = next(self.vae.parameters()).device
        latents = posterior(encode_video(vae_pixels(clip).to(device), self.vae, Tiling()))[0].float() * self.scale
        return Rows(patchify(latents, self.config).cpu(), patch_grid(self.config, *latents.shape[1:]))

    def encode(self, sample: Prepared) -> Prepared:
        """The sample with latents in place of pixels."""
        if sample.latents:
            return sample
        return replace(sample, pixels=(), latents=tuple(map(self._once, sample.pixels)))

    def _once(self, clip: Pixels) -> Rows:
        if self.store is None:
            return self(clip)
        device = next(self.vae.parameters()).device.type
        half = torch.is_autocast_enabled(device)
        precision = str(torch.get_autocast_dtype(device) if half else torch.float32)
        if found := self.store.get(clip, precision):
            return Rows(*found)
        rows = self(clip)
        self.store.put(clip, precision, rows.patches, rows.grid)
        return rows


@dataclass(frozen=True, eq=False)
class Drawn:
    """What chance decides for a batch of B samples: noise [sum of N, P], times [B], and which conditions are left out.

    `unprompted`: the sample's prompt is empty; `bare`: so are its references.
    """

    noise: Tensor
    times: Tensor
    unprompted: tuple[bool, ...]
    bare: tuple[bool, ...]


def spread_normal(count: int, generator: torch.Generator) -> Tensor:
    """Normal numbers [count], one from each of `count` equally likely ranges, in random order.

    A batch's gradient then owes less to which times it happened to draw.
    """
    order, within = torch.randperm(count, generator=generator), torch.rand(count, generator=generator)
    drawn: Tensor = torch.special.ndtri(((order + within) / count).clamp(1e-6, 1 - 1e-6))
    return drawn


def assemble(
    samples: Sequence[Prepared], drawn: Drawn, nothing: ProcessedInput, ids: VisionIds, queries: int
) -> tuple[FlowInputs, Tensor]:
    """Encoded samples as the model's inputs, and the velocity it should give: noise - data, [sum of N, P].

    The noisy target is (1 - t) * data + t * noise (MODEL.md sections 5 and 6). nothing: the prompt of bare samples.
    """
    data = torch.cat([sample.latents[0].patches for sample in samples])
    counts = torch.tensor([len(sample.latents[0].patches) for sample in samples])
    t = drawn.times.repeat_interleave(counts)[:, None]
    shown = [() if bare else sample.latents[1:] for sample, bare in zip(samples, drawn.bare, strict=True)]
    references = [rows.patches for latents in shown for rows in latents]
    prompts = [
        nothing if bare else _shown(sample, unprompted)
        for sample, unprompted, bare in zip(samples, drawn.unprompted, drawn.bare, strict=True)
    ]
    inputs = FlowInputs(
        prompts=collate(prompts, ids, queries=queries),
        targets=(1 - t) * data + t * drawn.noise,
        references=torch.cat(references) if references else data.new_zeros(0, data.shape[1]),
        target_grids=tuple(sample.latents[0].grid for sample in samples),
        reference_grids=tuple(tuple(rows.grid for rows in latents) for latents in shown),
        times=drawn.times,
    )
    return inputs, drawn.noise - data


def _shown(sample: Prepared, unprompted: bool) -> ProcessedInput:
    """What the VLM is shown of a sample."""
    given = _widened(sample.prompt)
    return replace(given, input_ids=sample.unprompted) if unprompted else given


def _halved(given: ProcessedInput) -> ProcessedInput:
    """Pixels in float16: finer than the bytes they come from, at half the memory of those that are kept."""
    return _cast(given, torch.float16)


def _widened(given: ProcessedInput) -> ProcessedInput:
    return _cast(given, torch.float32)


def _cast(given: ProcessedInput, dtype: torch.dtype) -> ProcessedInput:
    pixels, clips = (
        None if rows is None else rows.to(dtype) for rows in (given.pixel_values, given.pixel_values_videos)
    )
    return ProcessedInput(given.input_ids, pixels, given.image_grids, clips, given.video_grids)
