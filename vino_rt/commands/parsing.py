"""What is wrong with a command line before any command runs: told in one line, and to machines as an event."""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from vino_rt.commands.report import Reporter
from vino_rt.errors import UsageError

Mistake: type[Exception] = typer.BadParameter.__mro__[2]
"""The base class of what the parser raises; typer exports this subclass of it alone."""


class Command(TyperCommand):
    """A subcommand that refuses an option which is given twice but taken once, and not the first one silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; raises UsageError."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in order:
            once = not getattr(parameter, "multiple", True) and not getattr(parameter, "is_flag", False)
            if once and order.count(parameter) > 1:
                raise UsageError(f"{parameter.opts[0]} is given {order.count(parameter)} times; once is legal")
        return list(super().parse_args(ctx, args))


def tell_mistake(error: Any, given: Sequence[str], reporter: Reporter) -> int:
    """Report what the parser raised, with the value that it does not name; returns the exit code."""
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    options = getattr(getattr(error, "param", None), "opts", [])
    if value := _value(options, given):
        text = f"{options[0]} is {value!r}: {text.split(': ', 1)[-1]}"
    command = error.ctx.command_path if error.ctx else "vino-rt"
    message = f"{text}; see {command} --help"
    reporter.event("error", type=UsageError.__name__, message=message, exit_code=error.exit_code)
    reporter.complain(f"error: {message}")
    return int(error.exit_code)


def _value(options: Sequence[str], given: Sequence[str]) -> str:
    """The value given to an option, which has these names; empty where it cannot be told."""
    for name in options:
        for place, argument in enumerate(given):
            if argument == name and place + 1 < len(given):
                return given[place + 1]
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
    return ""
