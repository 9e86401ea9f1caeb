"""Build what a recipe asks for: export, open, measure against the reference, store; resumes where it stopped.

The only file of the package that imports `vino_export`, and only while it builds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vino_rt.backends.base import Backend, Kind
from vino_rt.backends.recipe import Recipe, make_backend
from vino_rt.backends.store import Manifest, Store, file_hash
from vino_rt.engines import checked_kinds, engine_key, layer_weights, needs_artefact
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir

TIMINGS = "timings"
"""Directory of a store that remembers how fast TensorRT found its tactics."""


@dataclass(frozen=True)
class BuildProgress:
    """One kind is in hand; `done` of `total` kinds are finished."""

    kind: str
    stage: str
    """`found` in the store, `export`, `verify` or `done`; while TensorRT builds, its phase and how far that is."""
    done: int
    total: int
    reused: bool = False
    """Whether the engine was in the store already."""


def missing_kinds(model: ModelDir, recipe: Recipe, store: Store) -> list[str]:
    """Engine kinds that the recipe needs from the store and that are not there.

    Raises EngineError where a backend's library or the GPU is missing: then no engine could be told from another.
    """
    needed = [kind for kind in checked_kinds(model, recipe).values() if needs_artefact(recipe, kind)]
    return [kind.name for kind in needed if _find(model, recipe, store, kind) is None]


def build(
    model: ModelDir, recipe: Recipe, store: Store, *, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> list[Manifest]:
    """Make sure the store holds every engine of a recipe for a model and return their manifests.

    Engines that are there are kept, so an interrupted build goes on where it stopped. Raises EngineError when an engine
    does not match the reference or the store cannot be written; what was built before stays. `on_progress` may raise
    Cancelled to end it.
    """
    kinds = [kind for kind in checked_kinds(model, recipe).values() if needs_artefact(recipe, kind)]
    manifests = []
    for number, kind in enumerate(kinds):
        found = _find(model, recipe, store, kind)

        def report(stage: str, name: str = kind.name, done: int = number, reused: bool = found is not None) -> None:
            on_progress(BuildProgress(name, stage, done, len(kinds), reused))

        if found is not None:
            report("found")
        manifests.append(found or _build_one(model, recipe, store, kind, report))
        report("done", done=number + 1)
    return manifests


def _find(model: ModelDir, recipe: Recipe, store: Store, kind: Kind) -> Manifest | None:
    """The stored engine of a kind; an unusable one counts as absent here and is replaced by the build."""
    key = engine_key(model, recipe, kind, _backend(recipe, kind))
    try:
        return store.find(key)[0]
    except EngineError:
        return None


def _build_one(model: ModelDir, recipe: Recipe, store: Store, kind: Kind, report: Callable[[str], None]) -> Manifest:
    """Export one kind, prove it on the model's first layer and put it into the store."""
    backend = _backend(recipe, kind)
    writer = WRITERS[backend.name]
    write = writer.load()
    from vino_export.verify import verify

    job = Job(model, recipe, store, kind, backend, report)
    key = engine_key(model, recipe, kind, backend)

    def make(directory: Path) -> Manifest:
        start = time.perf_counter()
        artefact, weights = directory / writer.file, layer_weights(model, kind, 0)
        report("export")
        details = write(job, artefact, weights)
        report("verify")
        (engine,) = backend.open(kind, artefact, [weights])
        verdict = verify(kind, engine, weights)
        engine.close()
        return Manifest(
            key=key,
            inputs=tuple(spec.name for spec in kind.spec.inputs),
            outputs=tuple(spec.name for spec in kind.spec.outputs),
            artefact=writer.file,
            bytes=artefact.stat().st_size,
            sha256=file_hash(artefact),
            error=verdict.error,
            bound=verdict.bound,
            verified_on=model.weights_hash,
            build_seconds=round(time.perf_counter() - start, 3),
            details=details,
        )

    return store.put(make)


@dataclass(frozen=True)
class Job:
    """One kind to build."""

    model: ModelDir
    recipe: Recipe
    store: Store
    kind: Kind
    backend: Backend
    report: Callable[[str], None]
    """Takes the stage that the build is in."""


Write = Callable[[Job, Path, Mapping[str, Tensor]], dict[str, Any]]
"""Writes a job's artefact, given the weights of its first layer; returns what the manifest says of it besides."""


@dataclass(frozen=True)
class Writer:
    """How the artefact of a backend is made."""

    file: str
    load: Callable[[], Write]
    """Imports what writing needs; EngineError for what is not installed."""


def _onnx() -> Write:
    try:
        from vino_export.trace import write_onnx
    except ImportError as error:
        raise EngineError(f"building needs {error.name}; install it with: pip install onnx onnxscript") from error

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_onnx(job.kind, path)
        return {}

    return write


def _provided() -> Write:
    from vino_export.tensorrt.provider import write_for_provider
    from vino_rt.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRtBackend

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_for_provider(job.kind, path, job.recipe.buckets, job.model.unit, job.model.area)
        OnnxRuntimeTensorRtBackend(job.recipe.place).build(job.kind, path)
        return {}

    return write


def _package() -> Write:
    from vino_export.package import write_package

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_package(job.kind, path, job.recipe.place, max_autotune=job.recipe.max_autotune)
        return {}

    return write


def _plan() -> Write:
    from vino_export.tensorrt.progress import BuildStep
    from vino_export.tensorrt.write import PlanOptions, write_plan
    from vino_rt.backends.tensorrt.description import read_description

    def write(job: Job, path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        def on_step(step: BuildStep) -> None:
            job.report(f"{step.phase}: {step.done} of {step.total}")

        cache = job.store.path / TIMINGS
        write_plan(job.kind, path, weights, PlanOptions(**_sizes(job), timing_cache=cache, on_step=on_step))
        return asdict(read_description(path))

    return write


def _dynamo_plan() -> Write:
    from vino_export.tensorrt.dynamo import write_dynamo_plan
    from vino_export.tensorrt.write import PlanOptions
    from vino_rt.backends.tensorrt.description import read_description

    def write(job: Job, path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        # Without a cache: the library's own is read by unpickling, and a store may be shared.
        write_dynamo_plan(job.kind, path, weights, PlanOptions(**_sizes(job)))
        return asdict(read_description(path))

    return write


def _sizes(job: Job) -> dict[str, Any]:
    """What a plan is built for."""
    recipe, model, target = job.recipe, job.model, job.backend.target()
    return {
        "buckets": recipe.buckets, "unit": model.unit, "area": model.area, "target": target, "variant": recipe.variant,
    }  # fmt: skip


WRITERS: Mapping[str, Writer] = {
    "onnxruntime": Writer("engine.onnx", _onnx),
    "onnxruntime-tensorrt": Writer("engine.onnx", _provided),
    "aotinductor": Writer("engine.pt2", _package),
    "tensorrt": Writer("engine.plan", _plan),
    "torch-tensorrt": Writer("engine.plan", _dynamo_plan),
}
"""By the name of a backend that needs artefacts."""


def _backend(recipe: Recipe, kind: Kind) -> Backend:
    name = recipe.backend_of(kind.name)
    return make_backend(name, None, recipe.place, max_autotune=recipe.max_autotune)
