"""The parser of `vino-rt` with all its subcommands."""

import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from vino_rt import __version__
from vino_rt.commands import build, generate, import_model, init, inspect, train, understand
from vino_rt.commands.base import add_command, install_hook, tell
from vino_rt.commands.interrupt import stop_on_terminate
from vino_rt.commands.parsing import Mistake, tell_mistake
from vino_rt.commands.report import Reporter
from vino_rt.errors import UsageError

app = typer.Typer(name="vino-rt", no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vino-rt {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Draw, animate and edit with VINO: unified image and video generation on compiled, proven engines."""


add_command(app, "generate", generate.GenerateOptions, generate.run)
add_command(app, "build", build.BuildOptions, build.run)
add_command(app, "import", import_model.ImportOptions, import_model.run)
add_command(app, "init", init.InitOptions, init.run)
add_command(app, "inspect", inspect.InspectOptions, inspect.run)
add_command(app, "train", train.TrainOptions, train.run)
add_command(app, "understand", understand.UnderstandOptions, understand.run)


def run(given: Sequence[str]) -> int:
    """Run the subcommand that `given` names and return its exit code."""
    stop_on_terminate()
    # Harmless flaws in a photo's EXIF data. Filtered for the command line only: a program that imports us decides.
    warnings.filterwarnings("ignore", module=r"PIL\.(TiffImagePlugin|JpegImagePlugin)")
    if "--debug" not in given:
        install_hook(json="--json" in given)
    reporter = Reporter(json="--json" in given)
    try:
        # Not `app(...)`: it would replace our exception hook by one that prints tracebacks.
        code = typer.main.get_command(app).main(given or ["--help"], prog_name="vino-rt", standalone_mode=False)
    except Mistake as error:
        return tell_mistake(error, given, reporter)
    except UsageError as error:
        return tell(error, reporter)
    return int(code or 0) if given else UsageError.exit_code
