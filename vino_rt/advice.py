"""What to type to build missing engines; for errors and for `vino-rt inspect`."""

import shlex

from vino_rt.backends.recipe import DEFAULT_RECIPE, Recipe
from vino_rt.backends.store import Store, default_store
from vino_rt.model_dir import ModelDir, bundled_model


def build_command(model: ModelDir, recipe: Recipe, store: Store) -> str:
    """The command line that builds a recipe's engines for a model into a store, quoted for a shell.

    Options whose value is the default are left out.
    """
    command = ["vino-rt", "build"]
    if model.path.resolve() != bundled_model().resolve():
        command += ["--model", str(model.path)]
    if recipe.file or recipe.name != DEFAULT_RECIPE:
        command += ["--recipe", recipe.file or recipe.name]
    if store.path.resolve() != default_store().path.resolve():
        command += ["--store", str(store.path)]
    return shlex.join(command)


def build_advice(model: ModelDir, recipe: Recipe, store: Store) -> str:
    """How to get the engines, on the command line and in a program: the end of an error's message."""
    return f"build it with: {build_command(model, recipe, store)} (in a program: Runtime.open(..., build=True))"
