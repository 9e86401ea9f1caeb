"""Build the engines of a recipe: export, open, verify against the reference, store. An interrupted build resumes.

The only file of the package that imports `vino_export`, and only while it builds.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.backends.base import INT8_ATTENTION, Backend, Engine, Kind
from vino_rt.backends.recipe import Recipe, make_backend
from vino_rt.backends.store import Manifest, Store, file_hash
from vino_rt.engines import checked_kinds, engine_key, layer_weights, needs_artefact
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.memory import GIB, detail, named_shortage
from vino_rt.model_dir import ModelDir

TIMINGS = "timings"
"""Subdirectory of a store for TensorRT's timing caches."""
RECORDED = frozenset({"embed", "dual_block", "single_block", "head"})
"""Kinds that run inside a recorded denoise step."""


@dataclass(frozen=True)
class BuildProgress:
    """The engine kind that is being built; `done` of `total` kinds are finished."""

    kind: str
    stage: str
    """`found` (in the store), `export`, `verify` or `done`. While TensorRT builds: its phase and progress, such as
    `Timing graph nodes: 3 of 40`. While the sizes of the buckets are verified: `verify: 2 of 5`.
    """
    done: int
    total: int
    reused: bool = False
    """Whether the engine was in the store already."""


ADVICE = "stop other processes that take memory and build again (finished engines are kept)"
"""Advice in errors about a build that runs out of memory."""


def missing_kinds(model: ModelDir, recipe: Recipe, store: Store) -> list[str]:
    """Names of the engine kinds that a recipe needs and the store lacks.

    Raises EngineError where the recipe cannot run on this machine, such as for a missing GPU or library.
    """
    return [kind.name for kind in _stored_kinds(model, recipe) if _find(model, recipe, store, kind) is None]


def build(
    model: ModelDir, recipe: Recipe, store: Store, *, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> list[Manifest]:
    """Build every engine of a recipe for a model that the store lacks, and return the manifests of all of them.

    Engines already in the store are reused, so an interrupted build resumes. Before anything is built, raises
    EngineError if the recipe cannot run here or a compiler or exporter is missing. Later, raises EngineError if an
    engine is not within its bound of the reference or the store cannot be written, and OutOfMemory; engines finished
    by then stay in the store. `on_progress` may raise Cancelled to stop.
    """
    kinds = _stored_kinds(model, recipe)
    there = {kind.name: _find(model, recipe, store, kind) for kind in kinds}
    for kind in kinds:
        if there[kind.name] is None:
            WRITERS[recipe.backend_of(kind.name)].load(kind)
    manifests = []
    for number, kind in enumerate(kinds):
        # Another process may have built it in the meantime.
        found = there[kind.name] or _find(model, recipe, store, kind)

        def report(stage: str, name: str = kind.name, done: int = number, reused: bool = found is not None) -> None:
            on_progress(BuildProgress(name, stage, done, len(kinds), reused))

        if found is not None:
            report("found")
        manifests.append(found or _build_one(model, recipe, store, kind, report))
        report("done", done=number + 1)
    return manifests


def _stored_kinds(model: ModelDir, recipe: Recipe) -> list[Kind]:
    """The kinds that a recipe runs from the store; EngineError where any of its kinds cannot run on this machine."""
    kinds = checked_kinds(model, recipe)
    for kind in kinds.values():
        _backend(recipe, kind).check(kind)
    return [kind for kind in kinds.values() if needs_artefact(recipe, kind)]


def _find(model: ModelDir, recipe: Recipe, store: Store, kind: Kind) -> Manifest | None:
    """Manifest of the stored engine of a kind; None if there is none or it is unusable, which the build replaces."""
    key = engine_key(model, recipe, kind, _backend(recipe, kind))
    try:
        return store.find(key)[0]
    except EngineError:
        return None


def _build_one(model: ModelDir, recipe: Recipe, store: Store, kind: Kind, report: Callable[[str], None]) -> Manifest:
    """Export one kind, verify it with the weights of the model's first layer, and put it into the store."""
    backend = _backend(recipe, kind)
    writer = WRITERS[backend.name]
    write = writer.load(kind)
    job = Job(model, recipe, store, kind, backend, report)
    key = engine_key(model, recipe, kind, backend)

    @_named_shortage(kind)
    def make(directory: Path) -> Manifest:
        start = time.perf_counter()
        artefact, weights = directory / writer.file, layer_weights(model, kind, 0)
        report("export")
        details = write(job, artefact, weights)
        report("verify")
        (engine,) = backend.open(kind, artefact, [weights])
        verdict, sizes = _prove(job, engine, weights)
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
            details={**details, "verified_sizes": sizes} if sizes else details,
        )

    return store.put(make)


@contextmanager
def _named_shortage(kind: Kind) -> Iterator[None]:
    """Turn any shortage of memory into one about building this kind: advice about requests would not help."""
    try:
        with named_shortage(ADVICE):
            yield
    except OutOfMemory as error:
        count = sum(math.prod(shape) for shape in kind.shapes().values())
        # The kind's own weights and the float64 reference's.
        least = count * (kind.dtype.itemsize + torch.float64.itemsize)
        raise OutOfMemory(
            f"{kind.name}: memory ran out while its engine was built{detail(error.__cause__ or error)}; one layer's "
            f"weights and reference alone take {least / GIB:.2f} GiB; {ADVICE}"
        ) from error


@dataclass(frozen=True)
class Job:
    """One kind to build, and everything its writer needs."""

    model: ModelDir
    recipe: Recipe
    store: Store
    kind: Kind
    backend: Backend
    report: Callable[[str], None]
    """Called with each stage; see `BuildProgress.stage`."""


Write = Callable[[Job, Path, Mapping[str, Tensor]], dict[str, Any]]
"""Writes the artefact of a job to a path, given the weights of its first layer; returns the manifest's `details`."""


@dataclass(frozen=True)
class Writer:
    """How the artefact of one backend is written."""

    file: str
    load: Callable[[Kind], Write]
    """Import the exporter of a kind and check the compiler; EngineError naming what is not installed."""


def _onnx(kind: Kind) -> Write:
    try:
        from vino_export.trace import write_onnx
    except ImportError as error:
        raise EngineError(f"building needs {error.name}; install it with: pip install onnx onnxscript") from error
    if kind.precision == INT8_ATTENTION:
        from vino_export.package import require_compiler

        require_compiler(f"precision {INT8_ATTENTION!r}")

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_onnx(job.kind, path)
        return {}

    return write


def _provided(_: Kind) -> Write:
    from vino_export.tensorrt.provider import write_for_provider
    from vino_rt.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRtBackend

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_for_provider(job.kind, path, job.recipe.buckets, job.model.settings.unit, job.model.settings.area)
        OnnxRuntimeTensorRtBackend(job.recipe.torch_device).build(job.kind, path)
        return {}

    return write


def _package(_: Kind) -> Write:
    from vino_export.package import require_compiler, write_package

    require_compiler("backend 'aotinductor'")

    def write(job: Job, path: Path, _: Mapping[str, Tensor]) -> dict[str, Any]:
        write_package(job.kind, path, job.recipe.torch_device, max_autotune=job.recipe.max_autotune)
        return {}

    return write


def _plan(_: Kind) -> Write:
    from vino_export.tensorrt.write import write_plan

    return _plan_writer(write_plan)


def _dynamo_plan(_: Kind) -> Write:
    from vino_export.tensorrt.dynamo import write_dynamo_plan

    return _plan_writer(write_dynamo_plan)


def _plan_writer(build_plan: Callable[[Kind, Path, Mapping[str, Tensor], Any], None]) -> Write:
    """Write TensorRT plans with either builder, reporting TensorRT's progress as stages of the build."""
    from vino_export.tensorrt.write import PlanOptions
    from vino_rt.backends.tensorrt.description import read_description

    def write(job: Job, path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        options = PlanOptions(
            buckets=job.recipe.buckets,
            unit=job.model.settings.unit,
            area=job.model.settings.area,
            target=job.backend.target(),
            variant=job.recipe.variant,
            timing_cache=job.store.path / TIMINGS,
            on_step=lambda step: job.report(f"{step.phase}: {step.done} of {step.total}"),
        )
        build_plan(job.kind, path, weights, options)
        return asdict(read_description(path))

    return write


def _prove(job: Job, engine: Engine, weights: Mapping[str, Tensor]) -> tuple[Any, list[dict[str, int]]]:
    """Verify an engine: the verdict of `vino_export.verify`, and the bucket sizes that were checked as well."""
    from vino_export.verify import verify
    from vino_export.verify_sizes import bucket_sizes, verify_sizes

    kind, recipe, settings = job.kind, job.recipe, job.model.settings
    verdict = verify(kind, engine, weights)
    sizes = bucket_sizes(kind, recipe.buckets, settings.unit, settings.area) if job.backend.sized else []

    def on_size(done: int) -> None:
        job.report(f"verify: {done} of {len(sizes)}")

    record = recipe.cuda_graphs and kind.name in RECORDED
    verify_sizes(kind, engine, weights, sizes, verdict.rounding, record=record, on_size=on_size)
    return verdict, sizes


WRITERS: Mapping[str, Writer] = {
    "onnxruntime": Writer("engine.onnx", _onnx),
    "onnxruntime-tensorrt": Writer("engine.onnx", _provided),
    "aotinductor": Writer("engine.pt2", _package),
    "tensorrt": Writer("engine.plan", _plan),
    "torch-tensorrt": Writer("engine.plan", _dynamo_plan),
}
"""By backend, for every backend that runs engines from the store."""


def _backend(recipe: Recipe, kind: Kind) -> Backend:
    name = recipe.backend_of(kind.name)
    return make_backend(name, None, recipe.torch_device, max_autotune=recipe.max_autotune)
