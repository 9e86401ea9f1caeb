"""What a command tells while it runs: bars on stderr for people, one JSON object per line on stdout for machines.

It knows the two audiences, not what any command does.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from vino_rt.build import BuildProgress

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
            typer.echo(json.dumps({"event": name, **fields}, default=str))

    def say(self, text: str) -> None:
        """A line on stdout for people; silent with `json` and `quiet`."""
        if not self.json and not self.quiet:
            typer.echo(text)

    def complain(self, text: str) -> None:
        """A line on stderr for people, whatever was asked for."""
        typer.echo(text, err=True)

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

    def on_build(self, show: OnPart) -> "Callable[[BuildProgress], None]":
        """A listener for a build of engines: a bar for people, events for machines."""

        def listen(progress: "BuildProgress") -> None:
            show("engines", progress.done, progress.total)
            self.event("build", **asdict(progress))

        return listen


def shown_bytes(count: int) -> str:
    """Bytes for people, in decimal units."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.{1 if power else 0}f} {units[power]}"
