"""What `build` and `inspect` tell of memory: predicted for a recipe, and measured where a build did so."""

from dataclasses import asdict

from vino_rt.backends.recipe import Recipe
from vino_rt.commands.report import Reporter, shown_bytes
from vino_rt.footprint import Footprint, predict
from vino_rt.footprint_measured import Measured
from vino_rt.model_dir import ModelDir


def show_memory(model: ModelDir, recipe: Recipe, measured: Measured, reporter: Reporter) -> Footprint:
    """Tell the prediction, each bucket or size with what was measured when that one ran, and return it."""
    from vino_rt.runtime import RECALL_BYTES

    told = predict(model, recipe, RECALL_BYTES)
    sizes = []
    for size in told.sizes:
        peak = {"peak": told.peak(size), "peak_tiled": told.peak(size, tiled=True)}
        sizes.append({**asdict(size), **peak, "measured": measured.get(size.shape)})
    reporter.event("memory", recipe=recipe.name, **{**vars(told), "sizes": sizes})
    parts = ", ".join(f"{part} {shown_bytes(count)}" for part, count in told.weights.items())
    reporter.say(f"memory    predicted for recipe {recipe.name}, at most, beside Python and its libraries")
    reporter.say(f"          weights {shown_bytes(sum(told.weights.values()))}, once: {parts}")
    reporter.say(
        f"          tables of a schedule {shown_bytes(told.tables)}, earlier requests {shown_bytes(told.kept)}"
    )
    columns = f"{'frames, size':<16} {'rows':>8} {'step':>9} {'decode':>9} {'in tiles':>9} {'all':>9} {'in tiles':>9}"
    reporter.say(f"          {columns} {'measured':>9}")
    for size in told.sizes:
        frames, height, width = size.clip
        counts = (size.step, size.decode, size.decode_tiled, told.peak(size), told.peak(size, tiled=True))
        found = measured.get(size.shape)
        columns = " ".join(f"{shown_bytes(count):>9}" for count in counts)
        rows, last = size.image_rows + size.text_rows, "-" if found is None else shown_bytes(found)
        reporter.say(f"          {f'{frames} x {width}x{height}':<16} {rows:>8} {columns} {last:>9}")
    return told
