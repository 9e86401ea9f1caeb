"""`vino-rt build`: build, verify and store the engines of a recipe, and compare their memory with the prediction."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vino_rt.commands.base import EngineOptions, engine_columns
from vino_rt.commands.report import Reporter, shown_bytes
from vino_rt.errors import OutputError

if TYPE_CHECKING:
    from vino_rt.backends.recipe import Recipe
    from vino_rt.backends.store import Manifest, Store
    from vino_rt.build import BuildProgress
    from vino_rt.footprint import Footprint
    from vino_rt.model_dir import ModelDir


@dataclass(frozen=True, kw_only=True)
class BuildOptions(EngineOptions):
    """Options of `build`."""

    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Run the engines once to measure their memory.")
    ] = True


def run(options: BuildOptions, reporter: Reporter) -> None:
    """Build the engines of a recipe into the store.

    Engines already in the store are kept, so an interrupted build resumes. Each new engine is compared with the
    reference model and stored with its error and the bound for it. The memory that the engines will need is predicted
    first; after the first build it is measured by running one step and one decode for each bucket or size in a new
    process.

    Example: vino-rt build --recipe cpu-int8
    """
    from vino_rt.commands.memory_lines import show_memory
    from vino_rt.commands.opening import open_parts, warn_of_emulation
    from vino_rt.footprint_measured import kept

    model, recipe, store = open_parts(options)
    warn_of_emulation(recipe, reporter)
    known = kept(model, recipe, store)
    told = show_memory(model, recipe, known, reporter)
    manifests, fresh = _build(model, recipe, store, reporter)
    if options.measure and not known:
        _measure(model, recipe, store, told, options, reporter)
    engines = [
        {"kind": m.key.kind, "backend": m.key.backend, "bytes": m.bytes, "error": m.error, "bound": m.bound}
        | {"build_seconds": m.build_seconds, "reused": m.key.kind not in fresh}
        for m in manifests
    ]
    reporter.event("result", store=str(store.path), recipe=recipe.name, engines=engines)
    for m in manifests:
        state = f"built in {m.build_seconds:.1f} s" if m.key.kind in fresh else "kept"
        reporter.say(
            f"{engine_columns(m.key.kind, m.key.backend)} error {m.error:.1e} of {m.bound:.1e} allowed, {state}"
        )
    reporter.say(f"{len(fresh)} of {len(manifests)} engines built, in {store.path}")


def _build(
    model: "ModelDir", recipe: "Recipe", store: "Store", reporter: Reporter
) -> tuple[list["Manifest"], set[str]]:
    """Build with progress bars; return the manifests of all engines, and the kinds that were newly built."""
    from vino_rt.build import build

    fresh: set[str] = set()
    with reporter.bars() as show:
        listen = reporter.on_build(show)

        def on_progress(progress: "BuildProgress") -> None:
            if progress.stage == "export":
                fresh.add(progress.kind)
            listen(progress)

        return build(model, recipe, store, on_progress=on_progress), fresh


def _measure(
    model: "ModelDir",
    recipe: "Recipe",
    store: "Store",
    told: "Footprint",
    options: BuildOptions,
    reporter: Reporter,
) -> None:
    """Measure the shapes that fit into free memory, keep the result in the store, and report it with the prediction."""
    from vino_rt.commands.opening import recipe_name
    from vino_rt.footprint_measured import keep, measure
    from vino_rt.memory import free_bytes

    free = free_bytes(recipe.torch_device)
    shapes = [size.shape for size in told.sizes if free is None or told.peak(size) <= free]
    with reporter.bars() as show:
        show("memory", 0, 0)
        found = measure(model, recipe_name(options), store, shapes) if shapes else {}
    if found:
        try:
            keep(model, recipe, store, found)
        except OutputError as error:
            # The engines work: a store that is shared read-only is no failure.
            reporter.event("warning", message=str(error))
            reporter.complain(f"warning: what was measured is not kept: {error}")
    for size in told.sizes:
        frames, height, width = size.clip
        peak, count = told.peak(size), found.get(size.shape)
        bucket = None if size.bucket is None else asdict(size.bucket)
        reporter.event("measured", clip=size.clip, bucket=bucket, predicted=peak, measured=count)
        where = f"{frames} x {width}x{height}" if size.bucket is None else str(size.bucket)
        told_found = "not measured (no room or no time)" if count is None else f"{shown_bytes(count)} measured"
        reporter.say(f"memory at {where}: {told_found}, at most {shown_bytes(peak)} predicted")
