"""The stages of a request on the opened engines of one model; `runtime` runs one request at a time.

Knows no backend, no threads and no callers. `checkpoint` is called between units of work and raises to cancel.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vino_rt.backends.base import DTYPES, PRECISIONS, Engine
from vino_rt.backends.recipe import Recipe
from vino_rt.bucket import Bucket, Need, check_clip, lay_out, patch_grid
from vino_rt.cache import ContentCache
from vino_rt.conditioning import Conditioning, branch_input, condition, join
from vino_rt.decode import Checkpoint, decode_latents, decode_memory, encode_video, posterior, to_uint8
from vino_rt.denoise import denoise
from vino_rt.engines import open_steps
from vino_rt.memory import check_room
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.patches import patchify, unpatchify
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.models.vino.transformer import BoundPlans, ModulationTables, Transformer
from vino_rt.models.vino.vlm_kinds import LAYER
from vino_rt.noise import draw_noise
from vino_rt.plan import BranchShape, Plan, pack
from vino_rt.progress import OnPart
from vino_rt.request import Pixels, Request
from vino_rt.schedule import Schedule, make_schedule
from vino_rt.settings import Settings, branches, resolve
from vino_rt.sources import Sources, load_sources
from vino_rt.tiling import Tiling

SMALLER = "ask for a smaller size or fewer frames, or turn spatial tiling on"
"""Advice in errors about a lack of memory."""


class Pipeline:
    """The stages of a request, for one model with its engines open."""

    def __init__(
        self, model: ModelDir, recipe: Recipe, engines: Mapping[str, list[Engine]], cache: ContentCache
    ) -> None:
        """engines: by kind, one per layer. cache: holds VLM states, latents and modulations for later requests."""
        self.model, self.recipe, self.device = model, recipe, recipe.torch_device
        self._cache, self._engines = cache, engines
        self._steps = open_steps(recipe)
        self._transformer = Transformer(model.transformer, engines, self._steps.room)
        metaquery = model.part("connector").load(["metaquery"])["metaquery"]
        dtype = PRECISIONS.get(recipe.precision_of(LAYER), torch.float32)
        self._vlm = Conditioner.from_dir(model.path / "vlm", metaquery, dtype, engines=engines).to(self.device)
        self._largest_decode = 0

    def prepare(self, request: Request, buckets: Sequence[Bucket]) -> tuple[Sources, Settings]:
        """Read the references, resolve the request against the model's defaults, and check that its size can be made.

        Raises MediaError, InputError, UsageError, and OutOfMemory if the decode would not fit.
        """
        sources = load_sources(request, self.model.settings)
        settings = resolve(request, self.model.settings, sources.sizes)
        check_clip(settings.clip, buckets, self.model.settings)
        needed = self._decode_memory(settings)
        # A library keeps the memory of an earlier decode and reuses it, so it no longer shows as free.
        if needed > self._largest_decode:
            check_room(needed, "decoding this size", SMALLER, self.device)
        return sources, settings

    def condition(self, sources: Sources, settings: Settings, on_part: OnPart | None = None) -> list[Conditioning]:
        """What each guidance branch is conditioned on, in the order of `settings.branches`.

        Branches are encoded in one packed VLM call: a different batch composition can change the last bits.
        `on_part`: as for `encode`, which reports the parts after these.
        """
        references, (connected, total) = len(sources.clips), self._condition_parts(sources)
        shown = tuple(branch_input(branch, settings, sources) for branch in branches(settings))

        def report(done: int) -> None:
            if on_part is not None:
                on_part(done, total)

        report(0)
        encode = partial(self._encode_prompts, shown, references, report)
        found = self._cache.get(("condition", references, shown), encode)
        report(connected)
        return found

    def _condition_parts(self, sources: Sources) -> tuple[int, int]:
        """Parts until prompts are connected, and with the references, each of which is one more."""
        connected = self._vlm.parts_of_prefill + 1
        return connected, connected + len(sources.clips)

    def plan(
        self, sources: Sources, settings: Settings, conditions: Sequence[Conditioning], buckets: Sequence[Bucket]
    ) -> list[Plan]:
        """The packed sequences of a request: one in a bucket, else as many as the recipe's `pack_rows` asks for."""
        clip, unit = settings.clip, self.model.settings.unit
        grids = tuple(patch_grid(shown.shape[:3], unit) for shown in sources.clips)
        need = Need(clip, grids, tuple(BranchShape(c.references, c.text.shape[0]) for c in conditions))
        layouts = lay_out(need, self.model.settings, buckets, self.recipe.pack_rows, self.recipe.pad_text)
        target = patch_grid(clip, unit)
        return [
            pack(
                target,
                grids,
                layout.branches,
                image_tokens=layout.lengths.image_tokens,
                text_tokens=layout.lengths.text_tokens,
            )
            for layout in layouts
        ]

    def encode(self, sources: Sources, settings: Settings, checkpoint: Checkpoint, on_part: OnPart) -> list[Tensor]:
        """Scaled latents float32 [C, F, H, W] of every reference, images first (MODEL.md section 5).

        on_part: called after each with the parts of `condition` and of this that are done, and with all of them.
        """
        tiling = Tiling(spatial=settings.spatial_tiling)
        # A generator of its own, so that the target's noise does not depend on the number of references.
        drawn = torch.Generator().manual_seed((settings.seed + 1) % 2**63)
        generator = drawn if settings.sample_posterior else None

        def encode(clip: Pixels) -> Tensor:
            pixels = vae_pixels(clip).to(self.device)
            moments = encode_video(pixels, self._tile("vae_encode", "pixels"), tiling, checkpoint=checkpoint)
            return posterior(moments, generator)[0] * self.model.vae.scaling_factor

        connected, total = self._condition_parts(sources)
        found = []
        for done, clip in enumerate(sources.clips, start=connected + 1):
            kept = generator is None
            found.append(self._cache.get(("latents", tiling, clip), partial(encode, clip)) if kept else encode(clip))
            on_part(done, total)
        return found

    def denoise(
        self,
        settings: Settings,
        plans: Sequence[Plan],
        conditions: Sequence[Conditioning],
        encoded: Sequence[Tensor],
        on_step: OnPart | None = None,
    ) -> Tensor:
        """Denoise the request's noise to latents float32 [C, F, H, W].

        encoded: what `encode` returned. on_step: called with the numbers of finished steps, from 0, and of all steps.
        """
        config = self.model.transformer
        schedule = make_schedule(settings.steps, settings.shift)
        noise = draw_noise(settings, config.in_channels).to(self.device)
        rows = [patchify(latents, config) for latents in encoded] or [noise.new_zeros(0, config.patch_values)]
        modulation = self.modulation(schedule)
        waiting = iter(conditions)
        bound = []
        for plan in plans:
            text, boundary = join(list(itertools.islice(waiting, len(plan.branches))))
            bound.append(self._transformer.bind(plan, torch.cat(rows), boundary, text, modulation))
        start = patchify(noise, config).contiguous()
        step = self._steps.get(BoundPlans(bound), start, schedule, (settings.guidance, settings.image_guidance))

        def report(done: int) -> None:
            if on_step is not None:
                on_step(done, settings.steps)

        patches = denoise(step, start, settings.steps, report)
        return unpatchify(patches, plans[0].target, config)

    def modulation(self, schedule: Schedule) -> ModulationTables:
        """Everything that depends on the schedule alone; a later request with the same one finds it in the cache."""
        return self._cache.get(("modulation", schedule), partial(self._transformer.modulation, schedule))

    def decode(
        self, latents: Tensor, settings: Settings, checkpoint: Checkpoint | None = None, on_tile: OnPart | None = None
    ) -> Pixels:
        """Decode latents [C, F, H, W] to frames, uint8 RGB [F, H, W, 3]; `on_tile` is told tiles done and in all."""
        pixels = decode_latents(
            latents[None],
            self._tile("vae_decode", "latents"),
            Tiling(spatial=settings.spatial_tiling),
            self.model.vae.scaling_factor,
            checkpoint=checkpoint,
            on_tile=on_tile,
        )
        frames: Pixels = to_uint8(pixels).numpy().astype(np.uint8, copy=False)
        self._largest_decode = max(self._largest_decode, self._decode_memory(settings))
        return frames

    def close(self) -> None:
        """Release engines and recorded steps; the pipeline must not be used afterwards."""
        # Recorded steps first: they launch kernels that the engines own.
        self._steps.clear()
        for engine in itertools.chain(*self._engines.values()):
            engine.close()

    def _encode_prompts(
        self, shown: Sequence[VlmInput], references: int, on_part: Callable[[int], None]
    ) -> list[Conditioning]:
        found = self._vlm.prefill(shown, self._cache, on_part=on_part)
        return [condition(states, references, self._connect) for states in found]

    def _connect(self, states: Tensor, boundary_states: Tensor) -> tuple[Tensor, Tensor]:
        (engine,) = self._engines["connector"]
        text, boundary = engine.run(**engine.fit(states=states, boundary_states=boundary_states))
        return text, boundary

    def _decode_memory(self, settings: Settings) -> int:
        tiling, (engine,) = Tiling(spatial=settings.spatial_tiling), self._engines["vae_decode"]
        inside = DTYPES[engine.spec.inputs[0].dtype].itemsize
        return decode_memory(*settings.clip, self.model.vae, tiling, inside)

    def _tile(self, kind: str, name: str) -> Callable[[Tensor], Tensor]:
        engine = self._engines[kind][0]

        def run(tile: Tensor) -> Tensor:
            (out,) = engine.run(**engine.fit(**{name: tile}))
            return out.float()

        return run
