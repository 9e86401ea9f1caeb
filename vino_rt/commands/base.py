"""What all subcommands share: options as frozen dataclasses, and the conversion of errors into exit codes.

It knows no subcommand. An option is a dataclass field with a `typer.Option` in its annotation; a command is one such
dataclass and one function that takes it.
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

from vino_rt.commands.parsing import Command
from vino_rt.commands.paths import refuse_empty_paths
from vino_rt.commands.report import Reporter
from vino_rt.errors import Cancelled, InputError, OutOfMemory, VinoError

MODEL_PANEL = "Model and engines"
TALK_PANEL = "Output and logging"
INTERNAL_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every subcommand has."""

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
    """Add a subcommand whose options are the fields of `options` and whose help text is the docstring of `run`.

    `run` returns the exit code, None meaning 0; an error of `vino_rt.errors` becomes its own exit code.
    """

    def entry(**given: Any) -> None:
        chosen = options(**given)
        code = execute(lambda reporter: run(chosen, reporter), chosen)
        if code:
            raise typer.Exit(code)

    entry.__doc__ = run.__doc__
    # Typer reads options from the signature; without this it would see only `**given`.
    entry.__signature__ = refuse_empty_paths(inspect.signature(options))  # type: ignore[attr-defined]
    app.command(name, cls=Command)(entry)


def execute(run: Callable[[Reporter], int | None], options: Options) -> int:
    """Run a command, report its error if it fails, and return its exit code; with `debug`, print the traceback too."""
    reporter = Reporter(json=options.json, quiet=options.quiet)
    try:
        return run(reporter) or 0
    except (VinoError, MemoryError, KeyboardInterrupt) as error:
        return _told(error, reporter, options)
    except (RuntimeError, OSError) as error:
        # Libraries report exhausted memory with their own error types.
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
    """Report an error on stderr and as a JSON event, and return its exit code; `fields` are added to the event."""
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
    """Install an exception hook: one line that mentions --debug for an internal error, `cancelled` for Ctrl-C."""

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
    """Parse `WxH` into (width, height), None into None; InputError for anything else."""
    if text is None:
        return None
    # Limit the digits first: Python refuses to convert a number of thousands of digits.
    sides = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text, re.ASCII)
    if sides is None:
        raise InputError(f"size is {text[:40]!r}; write width x height in pixels, such as 640x640")
    return int(sides[1]), int(sides[2])
