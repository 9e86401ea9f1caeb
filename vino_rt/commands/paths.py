"""Paths on the command line: an empty one is refused under the name of its option; knows no subcommand."""

import inspect
from pathlib import Path
from typing import get_args

import typer


def refuse_empty_paths(signature: inspect.Signature) -> inspect.Signature:
    """The signature of a command, each of whose options and arguments that are paths now refuses an empty text."""
    for parameter in signature.parameters.values():
        kind, *infos = get_args(parameter.annotation)
        if _holds_path(kind):
            for info in infos:
                info.parser = path
    return signature


def path(text: str) -> Path:
    """A path as it was typed; typer's own conversion under the same name, for the help, but for the empty text."""
    # To `Path` an empty text is the current directory, which is what messages would then be about.
    if not text:
        raise typer.BadParameter("it is empty; name a file or directory")
    return Path(text)


def _holds_path(kind: object) -> bool:
    return kind is Path or any(map(_holds_path, get_args(kind)))
