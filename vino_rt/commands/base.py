"""What all subcommands share: options as frozen dataclasses, and the one place where an error becomes an exit code.

It knows no subcommand. An option is a field with a `typer.Option` in its annotation, so that a command is one dataclass
and one function of it.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, TypeVar

import typer

from vino_rt.commands.paths import refuse_empty_paths
from vino_rt.commands.report import Reporter
from vino_rt.errors import Cancelled, InputError, OutOfMemory, VinoError

MODEL_PANEL = "Model and engines"
TALK_PANEL = "Output and logging"
INTERNAL_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every subcommand."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line on stdout.", rich_help_panel=TALK_PANEL)
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Show no progress and no results, only errors.", rich_help_panel=TALK_PANEL),
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=TALK_PANEL)
    ] = False


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Options of the subcommands that work with a model and its engines."""

    model: Annotated[
        Path | None,
        typer.Option(help="Model directory (default: the bundled vino-mini).", rich_help_panel=MODEL_PANEL),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(help="Name of a shipped recipe or a .toml file (default: cpu).", rich_help_panel=MODEL_PANEL),
    ] = None
    backend: Annotated[
        str | None,
        typer.Option(help="Use the shipped recipe of this backend, instead of --recipe.", rich_help_panel=MODEL_PANEL),
    ] = None
    store: Annotated[
        Path | None,
        typer.Option(help="Directory of built engines (default: the user's cache).", rich_help_panel=MODEL_PANEL),
    ] = None


OptionsT = TypeVar("OptionsT", bound=Options)


def add_command(
    app: typer.Typer, name: str, options: type[OptionsT], run: Callable[[OptionsT, Reporter], int | None]
) -> None:
    """Make a subcommand whose options are the fields of `options` and whose help is the docstring of `run`.

    `run` returns the exit code, None meaning 0; the errors of `vino_rt.errors` become theirs.
    """

    def entry(**given: Any) -> None:
        chosen = options(**given)
        code = execute(lambda reporter: run(chosen, reporter), chosen)
        if code:
            raise typer.Exit(code)

    entry.__doc__ = run.__doc__
    # What the command line reads: without it the parser would see `**given` and nothing else.
    entry.__signature__ = refuse_empty_paths(inspect.signature(options))  # type: ignore[attr-defined]
    app.command(name)(entry)


def execute(run: Callable[[Reporter], int | None], options: Options) -> int:
    """Run a command and return its exit code; with `debug` errors pass through with their traceback."""
    reporter = Reporter(json=options.json, quiet=options.quiet)
    try:
        return run(reporter) or 0
    except (VinoError, MemoryError, KeyboardInterrupt) as error:
        return _told(error, reporter, options)
    except (RuntimeError, OSError) as error:
        # Libraries report exhausted memory in errors of their own.
        from vino_rt.memory import is_shortage

        if not is_shortage(error):
            raise
        return _told(MemoryError(str(error)), reporter, options)


def _told(error: VinoError | MemoryError | KeyboardInterrupt, reporter: Reporter, options: Options) -> int:
    code = tell(error, reporter)
    if options.debug:
        traceback.print_exception(error)
    return code


def tell(error: VinoError | MemoryError | KeyboardInterrupt, reporter: Reporter, **fields: object) -> int:
    """Report an error to people and machines and return its exit code; `fields` go into the JSON event."""
    if isinstance(error, KeyboardInterrupt):
        error = Cancelled("cancelled; what was finished before is kept")
    elif isinstance(error, MemoryError):
        error = OutOfMemory(
            "memory ran out; stop other processes that take memory or, for a request, use a smaller size, fewer frames "
            "or references, or --spatial-tiling"
        )
    kind = type(error).__name__
    reporter.event("error", type=kind, message=str(error), exit_code=error.exit_code, **fields)
    where = "".join(f"{value}: " for value in fields.values())
    reporter.complain(f"{where}{error}" if isinstance(error, Cancelled) else f"{where}error: {error}")
    return error.exit_code


def install_hook(*, json: bool) -> None:
    """Replace the traceback of a mistake of ours by one line that says how to see it, that of Ctrl-C by `cancelled`."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        reporter = Reporter(json=json)
        if isinstance(error, KeyboardInterrupt):
            tell(error, reporter)
            return
        message = f"internal error: {kind.__name__}: {error}; run again with --debug and report what it shows"
        reporter.event("error", type=kind.__name__, message=message, exit_code=INTERNAL_ERROR)
        reporter.complain(message)

    sys.excepthook = hook


def engine_columns(kind: str, backend: str) -> str:
    """Kind and backend of an engine as the first columns of a table, wide enough for all that there are."""
    return f"{kind:<16} {backend:<20}"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read `WxH`; InputError when it is not two whole numbers."""
    if text is None:
        return None
    # Bounded before conversion: Python refuses to read a number of thousands of digits.
    sides = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text, re.ASCII)
    if sides is None:
        raise InputError(f"size is {text[:40]!r}; write width x height in pixels, such as 640x640")
    return int(sides[1]), int(sides[2])
