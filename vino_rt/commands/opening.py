"""Open the model, recipe and store that the options name; shared by `generate`, `build` and `inspect`."""

import torch

from vino_rt.backends.recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_dir
from vino_rt.backends.store import Store, default_store
from vino_rt.commands.base import EngineOptions
from vino_rt.commands.report import Reporter
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir, bundled_model

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names that PyTorch gives to what processors multiply bfloat16 with, on x86 and on ARM."""


def recipe_name(options: EngineOptions) -> str:
    """Name or file of the recipe that --recipe or --backend chooses; UsageError for both, or an unknown backend."""
    if options.backend is None:
        return options.recipe or DEFAULT_RECIPE
    if options.recipe is not None:
        raise UsageError("--recipe and --backend both choose what runs; give one of them")
    shipped = [load_recipe(path.stem) for path in recipe_dir().glob("*.toml")]
    found = [recipe for recipe in shipped if recipe.backend == options.backend]
    if not found:
        known = ", ".join(sorted({recipe.backend for recipe in shipped}))
        raise UsageError(f"no shipped recipe runs backend {options.backend!r}; there are {known}")
    # The plainest one; recipes of other precisions have to be asked for by name.
    return min(found, key=lambda recipe: (recipe.precision != "float32", len(recipe.precisions), recipe.name)).name


def warn_of_emulation(recipe: Recipe, reporter: Reporter) -> None:
    """Warn where a recipe computes in bfloat16 on a processor that has no products of it."""
    found = torch.cpu.get_capabilities()
    if recipe.device != "cpu" or "bfloat16" not in (recipe.precision, *recipe.precisions.values()):
        return
    if any(found.get(name) for name in BFLOAT16_INSTRUCTIONS):
        return
    message = (
        f"recipe {recipe.name!r} computes in bfloat16, which this processor has no instructions for: it is emulated "
        f"and slower than float32; take recipe {DEFAULT_RECIPE!r} here"
    )
    reporter.event("warning", message=message)
    if not reporter.quiet:
        reporter.complain(f"warning: {message}")


def open_parts(options: EngineOptions) -> tuple[ModelDir, Recipe, Store]:
    """The opened model directory (default: the bundled one), the recipe and the store; no engine is built or opened."""
    model = ModelDir.open(options.model or bundled_model())
    store = default_store() if options.store is None else Store(options.store)
    return model, load_recipe(recipe_name(options)), store
