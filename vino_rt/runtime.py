"""`Runtime` opens a model and its engines once, then turns requests into frames.

`generate` reads like the figure in the paper. Knows no backend. One lock makes requests of several threads wait their
turn.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import NoneType, TracebackType

import torch

from vino_rt.arguments import check_argument
from vino_rt.backends.base import Engine
from vino_rt.backends.recipe import Recipe, load_recipe
from vino_rt.backends.store import Store, default_store
from vino_rt.bucket import Bucket, Shape, usual_shapes
from vino_rt.build import BuildProgress
from vino_rt.build import build as build_engines
from vino_rt.cache import CacheStats, ContentCache
from vino_rt.engines import open_engines
from vino_rt.errors import InputError, UsageError
from vino_rt.memory import named_shortage
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.pipeline import SMALLER, Pipeline
from vino_rt.plan import PROMPT_BRANCHES
from vino_rt.progress import Progress, RequestMonitor
from vino_rt.request import MAX_THREADS, Request
from vino_rt.result import Result
from vino_rt.schedule import make_schedule

POLL_SECONDS = 0.05
"""Seconds between two looks of a waiting request at its cancel flag."""
CACHE_BYTES = 256 << 20
"""Default size limit of the cache of VLM states, reference latents and modulations."""


class Runtime:
    """One model with its engines open, as a context manager. Thread-safe: requests run one after another."""

    def __init__(
        self,
        model: ModelDir,
        recipe: Recipe,
        engines: Mapping[str, list[Engine]],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Use engines that are open already; `Runtime.open` is the usual way in."""
        self.model, self.recipe = model, recipe
        self._cache = ContentCache(cache_bytes)
        self._pipeline = Pipeline(model, recipe, engines, self._cache)
        self._lock = threading.Lock()
        self._closed = False
        self._owner: int | None = None
        self._process = os.getpid()

    @classmethod
    @named_shortage("take a recipe of fewer bits, or a device with more memory")
    def open(
        cls,
        model: str | Path | None = None,
        *,
        recipe: str | Path = "cpu",
        store: str | Path | None = None,
        build: bool = False,
        on_build: Callable[[BuildProgress], None] | None = None,
        threads: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        warm: bool = False,
    ) -> "Runtime":
        """Open a model directory (None: the bundled mini) with a recipe's engines from a store.

        build: build missing engines and report progress to `on_build`; without it, a missing engine is an error.
        threads: CPU threads of a compiled engine, 1 to MAX_THREADS (None: the library's default); PyTorch itself
        follows `torch.set_num_threads`.
        cache_bytes: size limit of what is cached of prompts, references and schedules for later requests; 0: no cache.
        warm: call `warm_up`; without it, JIT backends compile during the first requests.
        Raises InputError, ModelError, EngineMissing, EngineMismatch, EngineError, OutOfMemory.
        """
        if type(cache_bytes) is not int or cache_bytes < 0:
            raise InputError(f"cache_bytes is {cache_bytes!r}; it must be a whole number of bytes, 0 to keep nothing")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads is {threads!r}; it must be a whole number from 1 to {MAX_THREADS}")
        for name, value in (("model", model), ("store", store)):
            check_argument(name, value, (str, os.PathLike, NoneType), "the path of a directory, or None")
        check_argument("recipe", recipe, (str, os.PathLike), "the name of a shipped recipe or the path of a .toml file")
        directory = ModelDir.open(bundled_model() if model is None else Path(model))
        chosen = load_recipe(recipe)
        engine_store = default_store() if store is None else Store(Path(store))
        if build:
            build_engines(directory, chosen, engine_store, on_progress=on_build or _ignore)
        engines = open_engines(directory, chosen, engine_store, threads)
        runtime = cls(directory, chosen, engines, cache_bytes=cache_bytes)
        if warm:
            runtime.warm_up()
        return runtime

    def warm_up(self) -> None:
        """Run one step in every bucket or, without buckets, of the default picture and clip; decode once in each size.

        Moves one-time work (kernel compilation, autotuning, allocation) ahead of the first request; encoding of
        references is not warmed up. Where the recipe pads prompts to fixed lengths, a step of each length is run with
        and without guidance, so that prompts of any of these lengths find their step recorded. A request with
        references, or of another size, records its own. What depends on the schedule alone is
        computed and kept for the model's default schedules.
        """
        decoded = set()
        for shape in rehearsals(self.recipe, self.model):
            clip = shape.clip if isinstance(shape, Bucket) else shape
            self.rehearse(shape, decode=clip not in decoded)
            decoded.add(clip)
        self._cache.clear()
        settings = self.model.settings
        with self._exclusive(RequestMonitor()):
            for shift in {settings.image.shift, settings.video.shift}:
                self._pipeline.modulation(make_schedule(settings.steps, shift))

    def rehearse(self, shape: Shape, *, decode: bool = True) -> None:
        """Run one step with an empty prompt at one shape and, unless `decode` is false, decode the result.

        In a bucket, the step has all of its branches and rows. Raises InputError for a bucket that does not suit this
        model or cannot hold an empty prompt, and OutOfMemory.
        """
        frames, height, width = shape.clip if isinstance(shape, Bucket) else shape
        request = Request(prompt="", size=(width, height), frames=frames, steps=1, seed=0)
        buckets = (shape,) if isinstance(shape, Bucket) else self.recipe.buckets
        monitor = RequestMonitor()
        with self._exclusive(monitor):
            pipeline = self._pipeline
            sources, settings = pipeline.prepare(request, buckets)
            conditions = pipeline.condition(sources, settings)
            if isinstance(shape, Bucket):
                conditions = conditions[:1] * shape.branches
            plans = pipeline.plan(sources, settings, conditions, buckets)
            latents = pipeline.denoise(settings, plans, conditions, [])
            if decode:
                pipeline.decode(latents, settings)

    @property
    def cache_stats(self) -> CacheStats:
        """Hits, misses and bytes of the cache."""
        return self._cache.stats

    def generate(
        self,
        request: Request,
        *,
        on_step: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Run a request and return its frames; the same request, engines and seed give the same bytes.

        on_step: called in this thread at every stage and step; what it raises ends the request. cancel: set it, from
        any thread, to end the request within one step. Raises InputError for a request that cannot be made, Cancelled,
        EngineError, OutOfMemory, and UsageError after `close` or from within a callback.
        """
        check_argument("request", request, Request, "a Request, such as Request(prompt='a red fox')")
        monitor, buckets = RequestMonitor.of(on_step, cancel), self.recipe.buckets
        with self._exclusive(monitor):
            pipeline = self._pipeline
            with monitor.whole_stage("prepare"):
                sources, settings = pipeline.prepare(request, buckets)
            with monitor.stage("condition"):
                on_part = monitor.reporter("condition")
                # References last: an unusable prompt or too many rows are refused before the encoder runs.
                conditions = pipeline.condition(sources, settings, on_part)
                plans = pipeline.plan(sources, settings, conditions, buckets)
                references = pipeline.encode(sources, settings, monitor.check, on_part)
            with monitor.stage("denoise"):
                latents = pipeline.denoise(settings, plans, conditions, references, monitor.reporter("denoise"))
            with monitor.stage("decode"):
                frames = pipeline.decode(latents, settings, monitor.check, monitor.reporter("decode"))
        return Result(frames, settings.fps, settings.seed, monitor.timings, settings)

    def close(self) -> None:
        """Wait for the running request, then release engines and weights; UsageError from within a callback.

        In a process forked after `open` it does nothing: the engines are those of the process that opened them.
        """
        if os.getpid() != self._process:
            return
        self._refuse_callback("close")
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pipeline.close()
            # Most engines and the VLM hold nothing but memory, which dropping the last reference frees.
            del self._pipeline
            self._cache.clear()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _exclusive(self, monitor: RequestMonitor) -> Iterator[None]:
        """Hold the runtime's lock and device for one request; waiting for the lock can be cancelled."""
        self._refuse_fork()
        self._refuse_callback("generate")
        while not self._lock.acquire(timeout=POLL_SECONDS):
            monitor.check()
        try:
            if self._closed:
                raise UsageError("this runtime is closed; open another")
            self._owner = threading.get_ident()
            with on_device(self._pipeline.device), torch.inference_mode(), named_shortage(SMALLER):
                yield
        finally:
            self._owner = None
            self._lock.release()

    def _refuse_fork(self) -> None:
        """Raise UsageError in a forked process: threads of libraries are not there, and a request would hang."""
        if os.getpid() != self._process:
            raise UsageError(
                f"this runtime was opened by process {self._process}, and this is its fork {os.getpid()}; open one "
                "here, or start processes by 'spawn' (multiprocessing.set_start_method)"
            )

    def _refuse_callback(self, what: str) -> None:
        if self._owner == threading.get_ident():
            raise UsageError(f"{what} was called from a callback of a running request; return first, then call it")


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Make a CUDA device this thread's current one; for a CPU, do nothing."""
    context: AbstractContextManager[None] = torch.cuda.device(-1 if device.type == "cpu" else device)
    return context


def rehearsals(recipe: Recipe, model: ModelDir) -> tuple[Shape, ...]:
    """The shapes that `Runtime.warm_up` runs, most rows first.

    Where a recipe has no buckets and pads text to fixed lengths, each size comes with every length, with and without
    guidance: these are the shapes that prompts without references have.
    """
    shapes = usual_shapes(recipe.buckets, model.settings)
    if recipe.buckets or not recipe.pad_text:
        return shapes
    clips = [shape for shape in shapes if not isinstance(shape, Bucket)]
    padded = [
        Bucket(frames=frames, height=height, width=width, references=0, text_tokens=rows, branches=branches)
        for frames, height, width in clips
        for rows in recipe.pad_text
        for branches in (PROMPT_BRANCHES, 1)
    ]
    return usual_shapes(padded, model.settings)


def _ignore(_: BuildProgress) -> None:
    """`on_progress` of a build that nobody watches."""
