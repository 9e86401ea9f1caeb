"""`Runtime`: opens a model and its engines once, then turns requests into frames; reads like the figure in the paper.

Knows no backend: engines come opened from `engines`, and one lock makes requests of several threads wait their turn.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vino_rt.backends.base import PRECISIONS, Engine
from vino_rt.backends.recipe import Recipe, load_recipe
from vino_rt.backends.store import Store, default_store
from vino_rt.bucket import Bucket, Need, Shape, check_clip, lay_out, patch_grid, usual_shapes
from vino_rt.build import BuildProgress
from vino_rt.build import build as build_engines
from vino_rt.conditioning import Conditioning, branch_input, condition, join
from vino_rt.decode import decode_latents, decode_memory, encode_video, posterior, to_uint8
from vino_rt.denoise import denoise
from vino_rt.engines import open_engines, open_steps
from vino_rt.errors import InputError, UsageError
from vino_rt.memory import check_room, named_shortage
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.patches import patchify, unpatchify
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.models.vino.transformer import BoundPlans, Transformer
from vino_rt.models.vino.vlm_kinds import LAYER
from vino_rt.noise import draw_noise
from vino_rt.plan import BranchShape, Plan, pack
from vino_rt.progress import Progress, Watch
from vino_rt.recall import Recall, RecallCounts
from vino_rt.request import MAX_THREADS, Pixels, Request
from vino_rt.result import Result
from vino_rt.schedule import make_schedule
from vino_rt.settings import Settings, branches, resolve
from vino_rt.sources import Sources, load_sources
from vino_rt.tiling import Tiling

POLL_SECONDS = 0.05
"""How often a waiting request looks at its cancel flag."""
SMALLER = "ask for a smaller size or fewer frames, or turn spatial tiling on"
RECALL_BYTES = 256 << 20
"""What a runtime keeps of earlier requests when it is not told otherwise."""


class Runtime:
    """One model with its engines open. Use it from several threads: requests run one after another."""

    def __init__(
        self, model: ModelDir, recipe: Recipe, engines: Mapping[str, list[Engine]], *, recall: int = RECALL_BYTES
    ) -> None:
        """Take opened engines; `open` is the usual way in."""
        self.model, self.recipe, self._place = model, recipe, recipe.place
        self._recall = Recall(recall)
        self._engines = engines
        self._steps = open_steps(recipe)
        self._transformer = Transformer(model.transformer, engines, self._steps.room)
        metaquery = model.part("connector").load(["metaquery"])["metaquery"]
        dtype = PRECISIONS.get(recipe.precision_of(LAYER), torch.float32)
        self._vlm = Conditioner.from_dir(model.path / "vlm", metaquery, dtype, engines=engines).to(self._place)
        self._decoded = 0
        self._lock = threading.Lock()
        self._closed = False
        self._owner: int | None = None

    @classmethod
    @named_shortage("take a recipe of fewer bits, or a device with more memory")
    def open(
        cls,
        model: str | Path | None = None,
        *,
        recipe: str | Path = "cpu",
        store: str | Path | None = None,
        build: bool = False,
        on_build: Callable[[BuildProgress], None] = lambda _: None,
        threads: int | None = None,
        recall: int = RECALL_BYTES,
        warm: bool = False,
    ) -> "Runtime":
        """Open a model directory (None: the bundled mini) with a recipe's engines from a store.

        Builds missing engines only when `build` says so. `threads` (1 to MAX_THREADS) is the number a compiled engine
        computes with; what torch runs follows `torch.set_num_threads`. `recall`: bytes of earlier requests' prompts,
        references and schedules, as the model sees them, kept for later ones; 0 keeps none. `warm` runs `warm_up`,
        without which kernels that nobody built are compiled by the first requests. Raises InputError, ModelError,
        EngineMissing, EngineMismatch, EngineError, OutOfMemory.
        """
        if not isinstance(recall, int) or recall < 0:
            raise InputError(f"recall is {recall!r}; it must be a whole number of bytes, 0 to keep nothing")
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads is {threads!r}; it must be a whole number from 1 to {MAX_THREADS}")
        directory = ModelDir.open(bundled_model() if model is None else Path(model))
        chosen = load_recipe(recipe)
        place = default_store() if store is None else Store(Path(store))
        if build:
            build_engines(directory, chosen, place, on_progress=on_build)
        runtime = cls(directory, chosen, open_engines(directory, chosen, place, threads), recall=recall)
        if warm:
            runtime.warm_up()
        return runtime

    def warm_up(self) -> None:
        """Rehearse every bucket, or the model's default picture and clip where a recipe has no buckets.

        What a library prepares when it first runs is then behind the first request, but for what looks at references;
        and a step that is recorded for a bucket serves every request in it, whatever its steps and references.
        """
        for shape in usual_shapes(self.recipe.buckets, self.model):
            self.rehearse(shape)
        self._recall.clear()

    def rehearse(self, shape: Shape) -> None:
        """Make one step, in a bucket with all its branches and rows, and one decode of an empty prompt.

        Raises InputError for a bucket that is not of this model or too short for that prompt, and OutOfMemory.
        """
        bucket, (frames, height, width) = (shape, shape.clip) if isinstance(shape, Bucket) else (None, shape)
        request = Request(prompt="", size=(width, height), frames=frames, steps=1, seed=0)
        self._run(request, Watch(lambda _: None, threading.Event()), bucket)

    @property
    def recalled(self) -> RecallCounts:
        """How often something of an earlier request was used again, and what is kept."""
        return self._recall.counts

    def generate(
        self,
        request: Request,
        *,
        on_step: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Run a request and return its frames; the same request, engines and seed give the same bytes.

        `on_step` hears of every stage and step in this thread; setting `cancel` ends the request within one step.
        Raises InputError for what cannot be used, Cancelled, OutOfMemory, and UsageError after `close`.
        """
        return self._run(request, Watch(on_step, cancel or threading.Event()))

    def _run(self, request: Request, watch: Watch, bucket: Bucket | None = None) -> Result:
        """A request, or with a bucket its rehearsal in that one: each of its branches sees what the first one sees."""
        buckets = self.recipe.buckets if bucket is None else (bucket,)
        with self._turn(watch), torch.inference_mode(), named_shortage(SMALLER):
            with watch.stage("prepare"):
                watch.report("prepare", 0, 1)
                sources = load_sources(request, self.model)
                settings = resolve(request, self.model, sources.sizes)
                check_clip(settings.clip, buckets, self.model)
                needed = decode_memory(*settings.clip, self.model.vae, Tiling(spatial=settings.spatial_tiling))
                # Memory that a decode took stays with its library for the next one, and no longer looks free.
                if needed > self._decoded:
                    check_room(needed, "decoding this size", SMALLER, self._place)
                watch.report("prepare", 1, 1)
            with watch.stage("condition"):
                watch.report("condition", 0, 1)
                # The encoder last: a prompt that cannot be used and too many rows are refused before it works.
                conditions = self._condition(sources, settings, watch)
                conditions = conditions if bucket is None else conditions[:1] * bucket.branches
                plans = self._plans(settings, sources, conditions, buckets)
                encoded = self._encode(sources, settings, watch)
                watch.report("condition", 1, 1)
            with watch.stage("denoise"):
                latents = self._denoise(settings, plans, encoded, conditions, watch)
            with watch.stage("decode"):
                frames = self._decode(latents, settings, watch)
                self._decoded = max(self._decoded, needed)
        return Result(frames, settings.fps, settings.seed, watch.timings, settings)

    def close(self) -> None:
        """Wait for the running request, then give back engines and weights; UsageError from its callback."""
        self._refuse_callback("close")
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # Recorded steps first: they launch what engines hold.
            self._steps.clear()
            for engine in itertools.chain(*self._engines.values()):
                engine.close()
            # Most engines hold nothing but memory, and the VLM is no engine: letting go is what gives them back.
            del self._engines, self._transformer, self._vlm
            self._recall.clear()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _turn(self, watch: Watch) -> Iterator[None]:
        """Hold the runtime for one request, with its GPU the thread's own; waiting for it can be cancelled too."""
        self._refuse_callback("generate")
        while not self._lock.acquire(timeout=POLL_SECONDS):
            watch.check()
        try:
            if self._closed:
                raise UsageError("this runtime is closed; open another")
            self._owner = threading.get_ident()
            with torch.cuda.device(-1 if self._place.type == "cpu" else self._place):
                yield
        finally:
            self._owner = None
            self._lock.release()

    def _refuse_callback(self, what: str) -> None:
        if self._owner == threading.get_ident():
            raise UsageError(f"{what} was called from a callback of a running request; return first, then call it")

    def _encode(self, sources: Sources, settings: Settings, watch: Watch) -> list[Tensor]:
        """Scaled latents [C, F, H, W] of every reference, images first."""
        tiling = Tiling(spatial=settings.spatial_tiling)
        # A stream of its own, so that the target's noise does not depend on how many references there are.
        drawn = torch.Generator().manual_seed((settings.seed + 1) % 2**63)
        generator = drawn if settings.sample_posterior else None

        def encode(clip: Pixels) -> Tensor:
            pixels = vae_pixels(clip).to(self._place)
            moments = encode_video(pixels, self._tile("vae_encode", "pixels"), tiling, checkpoint=watch.check)
            return posterior(moments, generator)[0] * self.model.vae.scaling_factor

        if generator is not None:
            return [encode(clip) for clip in sources.clips]
        return [self._recall.get(("latents", tiling, clip), partial(encode, clip)) for clip in sources.clips]

    def _condition(self, sources: Sources, settings: Settings, watch: Watch) -> list[Conditioning]:
        """What all branches see, computed in one call: in another company a branch's last bits may be others."""
        references = len(sources.clips)
        shown = tuple(branch_input(branch, settings, sources) for branch in branches(settings))
        return self._recall.get(("condition", references, shown), partial(self._see, shown, references, watch))

    def _see(self, shown: Sequence[VlmInput], references: int, watch: Watch) -> list[Conditioning]:
        found = self._vlm.prefill(shown, self._recall, checkpoint=watch.check)
        return [condition(states, references, self._connect) for states in found]

    def _denoise(
        self, settings: Settings, plans: list[Plan], encoded: list[Tensor], conditions: list[Conditioning], watch: Watch
    ) -> Tensor:
        """Noise to latents [C, F, H, W]."""
        config = self.model.transformer
        schedule = make_schedule(settings.steps, settings.shift)
        noise = draw_noise(settings, config.in_channels).to(self._place)
        rows = [patchify(latents, config) for latents in encoded] or [noise.new_zeros(0, config.patch_values)]
        modulation = self._recall.get(("modulation", schedule), partial(self._transformer.modulation, schedule))
        waiting = iter(conditions)
        bound = []
        for plan in plans:
            text, boundary = join(list(itertools.islice(waiting, len(plan.branches))))
            bound.append(self._transformer.bind(plan, torch.cat(rows), boundary, text, modulation))
        start = patchify(noise, config).contiguous()
        step = self._steps.get(BoundPlans(bound), start, schedule, (settings.guidance, settings.image_guidance))
        patches = denoise(step, start, settings.steps, lambda done: watch.report("denoise", done, settings.steps))
        return unpatchify(patches, plans[0].target, config)

    def _plans(
        self, settings: Settings, sources: Sources, conditions: list[Conditioning], buckets: Sequence[Bucket]
    ) -> list[Plan]:
        """One packed sequence, or several where the recipe keeps them short; buckets always take one."""
        clip, unit = settings.clip, self.model.unit
        grids = tuple(patch_grid(shown.shape[:3], unit) for shown in sources.clips)
        need = Need(clip, grids, tuple(BranchShape(c.references, c.text.shape[0]) for c in conditions))
        layouts = lay_out(need, self.model, buckets, self.recipe.pack_rows, self.recipe.pad_text)
        return [pack(patch_grid(clip, unit), grids, layout.branches, **vars(layout.lengths)) for layout in layouts]

    def _decode(self, latents: Tensor, settings: Settings, watch: Watch) -> Pixels:
        pixels = decode_latents(
            latents[None],
            self._tile("vae_decode", "latents"),
            Tiling(spatial=settings.spatial_tiling),
            self.model.vae.scaling_factor,
            checkpoint=watch.check,
            on_tile=lambda done, total: watch.report("decode", done, total),
        )
        frames: Pixels = to_uint8(pixels).numpy().astype(np.uint8, copy=False)
        return frames

    def _connect(self, states: Tensor, boundary_states: Tensor) -> tuple[Tensor, Tensor]:
        (engine,) = self._engines["connector"]
        text, boundary = engine.run(**engine.fit(states=states, boundary_states=boundary_states))
        return text, boundary

    def _tile(self, kind: str, name: str) -> Callable[[Tensor], Tensor]:
        engine = self._engines[kind][0]

        def run(tile: Tensor) -> Tensor:
            (out,) = engine.run(**engine.fit(**{name: tile}))
            return out.float()

        return run
