"""Open the model, recipe and store that the options name; shared by `generate`, `build` and `inspect`."""

from vino_rt.backends.recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_dir
from vino_rt.backends.store import Store, default_store
from vino_rt.commands.base import EngineOptions
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir, bundled_model


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


def open_parts(options: EngineOptions) -> tuple[ModelDir, Recipe, Store]:
    """The opened model directory (default: the bundled one), the recipe and the store; no engine is built or opened."""
    model = ModelDir.open(options.model or bundled_model())
    store = default_store() if options.store is None else Store(options.store)
    return model, load_recipe(recipe_name(options)), store
