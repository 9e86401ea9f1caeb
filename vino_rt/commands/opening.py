"""From options to an opened model, a recipe and a store; what `generate`, `build` and `inspect` have in common."""

from vino_rt.backends.recipe import Recipe, load_recipe, recipe_dir
from vino_rt.backends.store import Store, default_store
from vino_rt.commands.base import EngineOptions
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir, bundled_model

DEFAULT_RECIPE = "cpu"


def recipe_name(options: EngineOptions) -> str:
    """The recipe asked for, by name, file or backend; UsageError for both or for a backend without a recipe."""
    if options.backend is None:
        return options.recipe or DEFAULT_RECIPE
    if options.recipe is not None:
        raise UsageError("--recipe and --backend both choose what runs; give one of them")
    shipped = {load_recipe(path.stem).backend: path.stem for path in sorted(recipe_dir().glob("*.toml"), reverse=True)}
    if options.backend not in shipped:
        raise UsageError(f"no shipped recipe runs backend {options.backend!r}; there are {', '.join(sorted(shipped))}")
    return shipped[options.backend]


def open_parts(options: EngineOptions) -> tuple[ModelDir, Recipe, Store]:
    """The model (the bundled one when none is named), the recipe and the store; nothing is built or loaded."""
    model = ModelDir.open(options.model or bundled_model())
    store = default_store() if options.store is None else Store(options.store)
    return model, load_recipe(recipe_name(options)), store
