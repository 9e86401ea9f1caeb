"""The memory table of `build` and `inspect`: predictions for a recipe, and measurements where a build made them."""

from collections.abc import Sequence
from dataclasses import asdict

from vino_rt.backends.recipe import Recipe
from vino_rt.commands.report import Reporter, shown_bytes
from vino_rt.footprint import Footprint, predict
from vino_rt.footprint_measured import Measured
from vino_rt.model_dir import ModelDir

COLUMNS = ("step", "decode", "decode (tiled)", "total", "total (tiled)", "measured")


def show_memory(model: ModelDir, recipe: Recipe, measured: Measured, reporter: Reporter) -> Footprint:
    """Report the predicted memory of each bucket or size with the measured one beside it; return the prediction."""
    from vino_rt.runtime import CACHE_BYTES

    told = predict(model, recipe, CACHE_BYTES)
    sizes = []
    for size in told.sizes:
        peak = {"peak": told.peak(size), "peak_tiled": told.peak(size, tiled=True)}
        sizes.append({**asdict(size), **peak, "measured": measured.get(size.shape)})
    reporter.event("memory", recipe=recipe.name, **{**vars(told), "sizes": sizes})
    parts = ", ".join(f"{part} {shown_bytes(count)}" for part, count in told.weights.items())
    reporter.say(f"memory    predicted for recipe {recipe.name}, at most, beside Python and its libraries")
    reporter.say(f"          weights {shown_bytes(sum(told.weights.values()))}, once: {parts}")
    if told.visiting:
        away, most = ", ".join(recipe.offload), shown_bytes(told.visiting)
        reporter.say(f"          in host memory, on the GPU only while they run: {away}, {most} at a time")
    reporter.say(
        f"          tables of a schedule {shown_bytes(told.tables)}, earlier requests {shown_bytes(told.kept)}"
    )
    reporter.say(f"          {'frames, size':<16} {'rows':>8}{_columns(COLUMNS)}")
    for size in told.sizes:
        frames, height, width = size.clip
        counts = (size.step, size.decode, size.decode_tiled, told.peak(size), told.peak(size, tiled=True))
        found = measured.get(size.shape)
        columns = _columns([*map(shown_bytes, counts), "-" if found is None else shown_bytes(found)])
        rows = size.image_rows + size.text_rows
        reporter.say(f"          {f'{frames} x {width}x{height}':<16} {rows:>8}{columns}")
    return told


def _columns(values: Sequence[str]) -> str:
    """The values right-aligned under the names of `COLUMNS`."""
    return "".join(f"  {value:>{max(len(name), 8)}}" for name, value in zip(COLUMNS, values, strict=True))
