"""What a command tells while it runs: bars on stderr for people, one JSON object per line on stdout for machines.

It knows the two audiences, not what any command does.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vino_rt.errors import InputError

if TYPE_CHECKING:
    from vino_rt.build import BuildProgress
    from vino_rt.model_dir import OnBytes

READER_GONE = 128 + signal.SIGPIPE
"""Exit code that a shell gives to a program which ends because nobody reads what it writes."""
MEGABYTE = 10**6
PART = re.compile(r".+: (\d+) of (\d+)")
"""A stage of a build that tells how far it is, such as `Timing graph nodes: 3 of 40`."""
OnPart = Callable[[str, int, int], None]
"""Called with the name of a stage, parts done and parts in all; 0 in all where that is not known."""


class Reporter:
    """Speaks to people (the default), to machines (`json`), or only of errors (`quiet`)."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def event(self, name: str, /, **fields: object) -> None:
        """One line of JSON on stdout, for machines only."""
        if self.json:
            _echo(json.dumps({"event": name, **fields}, default=str))

    def say(self, text: str) -> None:
        """A line on stdout for people; silent with `json` and `quiet`."""
        if not self.json and not self.quiet:
            _echo(text)

    def complain(self, text: str) -> None:
        """A line on stderr for people, whatever was asked for."""
        _echo(text, err=True)

    @contextmanager
    def bars(self) -> Iterator[OnPart]:
        """Progress on stderr while the body runs: a bar for each stage, or in a log a line when a stage is complete."""
        console = Console(stderr=True)
        if self.quiet or not console.is_terminal:
            yield self._line
            return
        columns = TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        tasks: dict[str, TaskID] = {}
        with Progress(*columns, console=console, transient=True) as progress:

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total or None)
                progress.update(tasks[stage], completed=done, total=total or None)

            yield update

    def _line(self, stage: str, done: int, total: int) -> None:
        if done == total > 0 and not self.quiet:
            self.complain(f"{stage}: {done} of {total}")

    def on_bytes(self, show: OnPart, what: str) -> "OnBytes":
        """A listener for a model that is written or read, `what` by what: a bar in megabytes, events for machines."""

        def listen(name: str, done: int, total: int) -> None:
            whole = -(-total // MEGABYTE)
            show("MB", whole if done == total else done // MEGABYTE, whole)
            self.event("progress", **{what: name}, done=done, total=total)

        return listen

    def on_build(self, show: OnPart) -> "Callable[[BuildProgress], None]":
        """A listener for a build of engines: bars or, in a log, a line for each new one, and events for machines.

        The bars are for the engines and, where a kind's stages tell how far they are, for the stage it is in.
        """
        lines = show == self._line

        def listen(progress: "BuildProgress") -> None:
            if lines and progress.stage == "done" and not progress.reused and not self.quiet:
                self.complain(f"{progress.kind}: built, {progress.done} of {progress.total} engines")
            if not lines and (part := PART.fullmatch(progress.stage)):
                show(progress.kind, int(part[1]), int(part[2]))
            show("engines", progress.done, progress.total)
            self.event("build", **asdict(progress))

        return listen


def _echo(text: str, *, err: bool = False) -> None:
    """A line on stdout or stderr; what the stream cannot encode, such as a name in another encoding, is escaped.

    Where its reader is gone (`| head`), the command ends with exit code 141 and without a word; where it cannot be
    written for another reason, such as a full disk, with that reason and exit code 3.
    """
    stream = sys.stderr if err else sys.stdout
    try:
        try:
            typer.echo(text, err=err)
        except UnicodeEncodeError:
            typer.echo(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), err=err)
    except OSError as error:
        # What is left in the stream's buffer has to go somewhere, or Python complains of it as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(READER_GONE) from None
        if not err:
            _echo(f"error: stdout cannot be written: {error.strerror}; free space there or send it elsewhere", err=True)
        raise typer.Exit(InputError.exit_code) from None


def shown_bytes(count: int) -> str:
    """Bytes for people, in decimal units."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.{1 if power else 0}f} {units[power]}"
