"""Answers to trials as a user would get them: pixels from a runtime, captions from the model's vision-language model.

It knows requests and models, not what is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import CheckFailed
from bench.quality_cases import UNDERSTAND, Trial
from bench.quality_score import Answer
from vino_rt.backends.base import Engine
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import default_store
from vino_rt.build import build
from vino_rt.decode import decode_latents, encode_video, posterior, to_uint8
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.request import Pixels, Reference, Request
from vino_rt.runtime import Runtime
from vino_rt.sources import load_sources
from vino_rt.task_rules import TASKS
from vino_rt.tiling import Tiling
from vino_rt.understand import DESCRIBE_CLIP, DESCRIBE_IMAGE, Captioner
from vino_rt.world.examples import Example


@dataclass(frozen=True)
class Setup:
    """What answers; None leaves a choice to the model."""

    model: Path
    recipe: str = "cpu"
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float = 1.0
    threads: int = 1
    """Threads that one artist computes with; several artists use cores better than several threads do."""
    autoencoder: bool = False
    """Whether the autoencoder answers with what it gives back of the truth, in the place of the model."""


class Artist:
    """One opened model; its parts are opened when first needed."""

    def __init__(self, setup: Setup) -> None:
        """Raises ModelError for a directory that is no model."""
        self.setup = setup
        self.model = ModelDir.open(setup.model)

    @cached_property
    def engines(self) -> dict[str, list[Engine]]:
        """The recipe's engines, built where they are missing."""
        recipe, store = load_recipe(self.setup.recipe), default_store()
        build(self.model, recipe, store)
        return open_engines(self.model, recipe, store, self.setup.threads)

    @cached_property
    def runtime(self) -> Runtime:
        """What `Runtime.open` returns, on engines that `reconstruct` can use as well."""
        return Runtime(self.model, load_recipe(self.setup.recipe), self.engines)

    @cached_property
    def captioner(self) -> Captioner:
        """The whole vision-language model."""
        return Captioner.open(self.model)

    def prepare(self, case: str) -> Runtime | Captioner:
        """Open what a case is answered with, so that it is no part of an answer's time."""
        return self.captioner if case == UNDERSTAND else self.runtime

    def answers(self, trials: Sequence[Trial]) -> list[Answer]:
        """Answer trials of one row in order; captions are made together. CheckFailed for frames of another size."""
        if trials[0].case == UNDERSTAND:
            return [*self.captioner.describe_many([question(trial.example, self.model) for trial in trials])]
        if self.setup.autoencoder:
            return [self.reconstruct(trial.example.truth()) for trial in trials]
        return [self.draw(trial.example, trial.number) for trial in trials]

    def draw(self, example: Example, seed: int) -> Pixels:
        """The frames of one example, uint8 [F, H, W, 3]."""
        frames = self.runtime.generate(request(example, seed, self.setup)).frames
        expected = (example.frames, example.height, example.width, 3)
        if frames.shape != expected:
            raise CheckFailed(f"{example.task} came out as {frames.shape}, asked for {expected}: take another size")
        return frames

    @torch.inference_mode()
    def reconstruct(self, frames: Pixels) -> Pixels:
        """What the autoencoder alone makes of frames uint8 [F, H, W, 3]."""
        moments = encode_video(vae_pixels(frames), self._tile("vae_encode", "pixels"), Tiling())
        decoded = decode_latents(posterior(moments), self._tile("vae_decode", "latents"), Tiling(), 1.0)
        pixels: Pixels = to_uint8(decoded).numpy()
        return pixels

    def _tile(self, kind: str, name: str) -> Callable[[Tensor], Tensor]:
        engine = self.engines[kind][0]
        return lambda tile: engine.run(**{name: tile.contiguous()})[0]


def request(example: Example, seed: int, setup: Setup) -> Request:
    """An example as a user would ask for it, references as pixels in memory."""
    rule = TASKS[example.task]
    return Request(
        prompt=example.prompt,
        task=example.task,
        references=references(example),
        base_image=example.base_image,
        size=(example.width, example.height) if rule.size_from == "request" else None,
        frames=None if rule.still else example.frames,
        steps=setup.steps,
        seed=seed,
        guidance=setup.guidance,
        image_guidance=setup.image_guidance if example.images else 1.0,
    )


def references(example: Example) -> tuple[Reference, ...]:
    """What is shown beside the prompt: images in order, then the clip at its own rate."""
    images = [Reference.image(example.picture(index)) for index in range(len(example.images))]
    clip = example.clip()
    return tuple(images) if clip is None else (*images, Reference.video(clip, fps=example.fps))


def question(example: Example, model: ModelDir) -> VlmInput:
    """The request to describe an example's truth, seen as the command `understand` would see it."""
    truth = example.truth()
    moving = len(truth) > 1
    shown = Reference.video(truth, fps=example.fps) if moving else Reference.image(truth[0])
    prompt = DESCRIBE_CLIP if moving else DESCRIBE_IMAGE
    sources = load_sources(Request(prompt=prompt, references=(shown,)), model.settings)
    return VlmInput(prompt, sources.images, sources.vlm_frames)
