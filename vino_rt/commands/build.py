"""`vino-rt build`: make the engines of a recipe, prove them, store them."""

from dataclasses import dataclass
from typing import Any

from vino_rt.commands.base import EngineOptions
from vino_rt.commands.report import Reporter


@dataclass(frozen=True, kw_only=True)
class BuildOptions(EngineOptions):
    """What `build` takes."""


def run(options: BuildOptions, reporter: Reporter) -> None:
    """Build the engines of a recipe into the store.

    Engines that are there already are kept, so an interrupted build goes on where it stopped. Each new engine is
    measured against the reference and stored with its error and bound.
    """
    from vino_rt.build import build
    from vino_rt.commands.opening import open_parts

    model, recipe, store = open_parts(options)
    fresh: set[str] = set()
    with reporter.bars() as show:
        listen = reporter.on_build(show)

        def on_progress(progress: Any) -> None:
            if progress.stage == "export":
                fresh.add(progress.kind)
            listen(progress)

        manifests = build(model, recipe, store, on_progress=on_progress)
    engines = [
        {"kind": m.key.kind, "backend": m.key.backend, "bytes": m.bytes, "error": m.error, "bound": m.bound}
        | {"build_seconds": m.build_seconds, "reused": m.key.kind not in fresh}
        for m in manifests
    ]
    reporter.event("result", store=str(store.path), recipe=recipe.name, engines=engines)
    for m in manifests:
        state = f"built in {m.build_seconds:.1f} s" if m.key.kind in fresh else "kept"
        reporter.say(f"{m.key.kind:<14} {m.key.backend:<12} error {m.error:.1e} of {m.bound:.1e} allowed, {state}")
    reporter.say(f"{len(fresh)} of {len(manifests)} engines built, in {store.path}")
